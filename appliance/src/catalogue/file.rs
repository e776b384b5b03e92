//! Functions that take the files of the catalogue apart.

use toml::{
    Spanned,
    de::{DeTable, DeValue, Deserializer},
};

/// Takes the table of this name out of a file.
pub(super) fn table(file: &mut DeTable<'static>, key: &str) -> Option<DeTable<'static>> {
    match file.remove(key)?.into_inner() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

/// Returns a deserializer of a table in a file with this text.
pub(super) fn of(text: &str, table: DeTable<'static>) -> Deserializer<'static> {
    Deserializer::from(Spanned::new(0..text.len(), table))
}

/// The files of a folder beside this one, each with its name.
macro_rules! files {
    ($folder:literal: $($name:literal)*) => {
        &[$(($name, include_str!(concat!($folder, "/", $name, ".toml")))),*]
    };
}
pub(super) use files;
