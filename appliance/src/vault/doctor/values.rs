//! Checks that each group's values could be used: reads them as the gateway does, and drops them.
//! Leases that this takes are given back with the tokens of the examination.

use super::{super::read, CheckVerdict, Doctor};
use crate::{
    policy::{GroupName, Location, SecretRef},
    reason::SecretCause,
    secrets::{FetchError, Fetched, PickedValue, SecretValue, Uses},
};

impl Doctor<'_> {
    pub(super) async fn look_at_values(&mut self, uses: &Uses) {
        let mut wanted: Vec<_> = uses.keys().collect();
        wanted.sort_unstable();
        for one @ (group, secret) in wanted {
            let Location::Vault(location) = secret.location() else { continue };
            let answer = read::fetch(&self.session, group, &location, &[secret.pick()]).await;
            let (verdict, text) = match answer.and_then(|answer| fits(one, answer, uses)) {
                Ok(()) => (CheckVerdict::Ok, format!("could use {secret}")),
                Err(error @ FetchError::Gone(..)) => {
                    (CheckVerdict::Missing, format!("{secret}: {}", error.text()))
                }
                Err(error) => (CheckVerdict::Unanswered, format!("{secret}: {}", error.text())),
            };
            self.add(verdict, &format!("group {group}"), &text);
        }
    }
}

fn fits(
    wanted: &(GroupName, SecretRef),
    mut answer: Fetched,
    uses: &Uses,
) -> Result<(), FetchError> {
    let invalid = |text| FetchError::Gone(SecretCause::ValueInvalid, text);
    let Some(PickedValue { whole, .. }) = answer.values.pop().transpose()? else {
        return Err(invalid("the answer lacks a value"));
    };
    let value = SecretValue::load(whole, SecretValue::FLOOR_BYTES);
    let value = value.map_err(|error| invalid(error.text()))?;
    uses.unfit(wanted, &value, &answer.narrowing).map_or(Ok(()), |text| Err(invalid(text)))
}
