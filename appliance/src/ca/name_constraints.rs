//! The extension that limits an issuing CA to names (RFC 5280, section 4.2.1.10). It is encoded
//! here because it has to stand behind basicConstraints. rcgen puts it in front, and wolfSSL
//! refuses such a CA for every name.
//!
//! A permitted name also permits the names below it. An exclusion of those would need a name with a
//! leading dot, which RFC 5280 does not define: verifiers that follow it to the letter refuse the
//! whole chain.

use std::collections::BTreeSet;

use rcgen::CustomExtension;
use yasna::{DERWriter, Tag};

use crate::policy::Constraints;

/// The names that a CA may sign for.
pub(super) struct NameConstraints {
    /// Names, with those below them.
    pub(super) permitted: Vec<String>,
    /// Prefixes of IP addresses, each an address and its mask.
    pub(super) excluded: Vec<&'static [u8]>,
}

impl NameConstraints {
    /// Permits these names and excludes every IP address.
    pub(super) fn only(names: &BTreeSet<&str>) -> Self {
        let permitted = names.iter().map(|name| (*name).to_owned()).collect();
        Self { permitted, excluded: EVERY_ADDRESS.to_vec() }
    }

    pub(super) fn extension(&self, constraints: Constraints) -> CustomExtension {
        let mut extension = CustomExtension::from_oid_content(NAME_CONSTRAINTS, self.content());
        extension.set_criticality(constraints == Constraints::Critical);
        extension
    }

    fn content(&self) -> Vec<u8> {
        let names = |writer: DERWriter<'_>, name: &String| writer.write_ia5_string(name);
        let addresses = |writer: DERWriter<'_>, prefix: &&[u8]| writer.write_bytes(prefix);
        yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                subtrees(writer.next(), PERMITTED, &self.permitted, (DNS_NAME, names));
                subtrees(writer.next(), EXCLUDED, &self.excluded, (IP_ADDRESS, addresses));
            });
        })
    }
}

/// Writes `GeneralSubtrees` with the tag of its list. Minimum is the default and maximum absent.
fn subtrees<T>(
    writer: DERWriter<'_>,
    list: u64,
    bases: &[T],
    (kind, write): (u64, impl Fn(DERWriter<'_>, &T)),
) {
    writer.write_tagged_implicit(Tag::context(list), |writer| {
        writer.write_sequence_of(|writer| {
            for base in bases {
                writer.next().write_sequence(|writer| {
                    let tag = Tag::context(kind);
                    writer.next().write_tagged_implicit(tag, |writer| write(writer, base));
                });
            }
        });
    });
}

/// 0.0.0.0/0 and ::/0, each an address and its mask.
pub(super) const EVERY_ADDRESS: [&[u8]; 2] = [&[0; 8], &[0; 32]];

/// `id-ce-nameConstraints`.
const NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];
/// Tags in `NameConstraints`.
const PERMITTED: u64 = 0;
const EXCLUDED: u64 = 1;
/// Tags of `GeneralName`.
const DNS_NAME: u64 = 2;
const IP_ADDRESS: u64 = 7;
