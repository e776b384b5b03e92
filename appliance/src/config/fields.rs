//! Values without their places.

use toml::Spanned;

/// The value, or what holds where there is none.
pub(super) fn inner<T>(value: Option<Spanned<T>>, default: T) -> T {
    value.map_or(default, Spanned::into_inner)
}

/// `None` where something is there and wrong.
pub(super) fn transpose<T>(section: Option<Option<T>>) -> Option<Option<T>> {
    section.map_or(Some(None), |section| section.map(Some))
}

/// The values of a list.
pub(super) fn plain<T>(values: Vec<Spanned<T>>) -> Vec<T> {
    values.into_iter().map(Spanned::into_inner).collect()
}
