//! Functions that take values without their places in the file.

use toml::Spanned;

/// Returns the value, or the default where there is none.
pub(super) fn inner<T>(value: Option<Spanned<T>>, default: T) -> T {
    value.map_or(default, Spanned::into_inner)
}

/// Returns `None` where a section is there and wrong.
pub(super) fn transpose<T>(section: Option<Option<T>>) -> Option<Option<T>> {
    section.map_or(Some(None), |section| section.map(Some))
}

/// Returns the values of a list.
pub(super) fn plain<T>(values: Vec<Spanned<T>>) -> Vec<T> {
    values.into_iter().map(Spanned::into_inner).collect()
}
