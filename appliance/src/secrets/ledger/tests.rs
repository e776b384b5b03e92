//! The effect of answers, refusals and time on held and masked values.

use super::{super::SecretsHealth, *};
use crate::policy::{Pick, PickPart, SecretRef, VaultLocation};

const STALE: Duration = Duration::from_secs(300);
const OUTAGE: FetchError = FetchError::Outage(SecretCause::VaultSealed, "sealed");
const DENIED: FetchError = FetchError::Gone(SecretCause::VaultDenied, "denied");
const ONE: &str = "sk-one-0123456789";
const TWO: &str = "sk-two-0123456789";

struct Scene {
    ledger: Ledger,
    key: GroupSecret,
    start: Instant,
}

impl Scene {
    fn new() -> Self {
        let (mount, path) = ("secret".into(), "openai".into());
        let reference = SecretRef::Vault {
            location: VaultLocation::Kv2 { mount, path, version: None },
            pick: Pick([PickPart::Field("key".into())].into()),
        };
        let (key, start) = ((GroupName("agents".into()), reference), Instant::now());
        let mut ledger = Ledger::new(STALE);
        ledger.want(std::slice::from_ref(&key), start);
        Self { ledger, key, start }
    }

    fn value(&mut self, at: u64, value: &str) -> LedgerChange {
        self.lent(at, value, None)
    }

    /// Notes a value that is leased until `ends`.
    fn lent(&mut self, at: u64, value: &str, ends: Option<u64>) -> LedgerChange {
        let bytes = Zeroizing::new(value.as_bytes().to_vec());
        let lease_ends = ends.map(|ends| self.at(ends));
        let (picked, asked) = (bytes.into(), self.at(at));
        let fresh = Fresh { picked, asked, lease_ends, narrowing: Arc::default() };
        let change = self.ledger.record(&self.key, Ok(fresh), self.at(at));
        self.ledger.forget_old(self.at(at));
        change
    }

    fn error(&mut self, at: u64, error: FetchError) -> LedgerChange {
        self.ledger.record(&self.key, Err(error), self.at(at))
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn current(&self, at: u64) -> Result<String, SecretCause> {
        let (group, reference) = &self.key;
        let snapshot = self.ledger.snapshot();
        snapshot.current(group, reference, 16, self.at(at)).map(text)
    }

    fn known(&self) -> Vec<String> {
        self.known_from(16)
    }

    fn known_from(&self, min_bytes: usize) -> Vec<String> {
        let snapshot = self.ledger.snapshot();
        snapshot.known(&self.key.0, &self.key.1, min_bytes).cloned().map(text).collect()
    }

    fn generation(&self) -> u64 {
        self.ledger.snapshot().generation()
    }
}

fn text(value: Arc<SecretValue>) -> String {
    String::from_utf8(value.expose().to_vec()).unwrap()
}

#[test]
fn an_outage_keeps_a_value_until_it_is_too_old() {
    let mut scene = Scene::new();
    assert_eq!(scene.current(0), Err(SecretCause::VaultUnreachable));
    assert_eq!(scene.error(0, OUTAGE), LedgerChange::Failed(OUTAGE));
    assert_eq!(scene.current(0), Err(SecretCause::VaultSealed));
    assert_eq!(scene.value(10, ONE), LedgerChange::Arrived);
    assert_eq!(scene.error(20, OUTAGE), LedgerChange::Failed(OUTAGE));
    assert_eq!(scene.error(30, OUTAGE), LedgerChange::Same);
    assert_eq!(scene.current(309).as_deref(), Ok(ONE));
    assert_eq!(scene.current(310), Err(SecretCause::VaultSealed), "what keeps a newer one away");
    assert_eq!(scene.known(), [ONE], "what has ended is still masked");
    assert_eq!(scene.value(400, ONE), LedgerChange::Arrived);
    assert_eq!(scene.current(699).as_deref(), Ok(ONE));
}

#[test]
fn a_refusal_drops_a_value_and_keeps_its_mask() {
    let mut scene = Scene::new();
    scene.value(0, ONE);
    assert_eq!(scene.error(1, DENIED), LedgerChange::Failed(DENIED));
    assert_eq!(scene.current(1), Err(SecretCause::VaultDenied));
    assert_eq!(scene.known(), [ONE]);
    scene.error(2, OUTAGE);
    assert_eq!(scene.current(2), Err(SecretCause::VaultSealed), "an outage brings nothing back");
}

#[test]
fn an_unusable_value_replaces_a_good_one_by_nothing() {
    for bad in ["short", "sk-0123\r\nX-Evil: 1", ""] {
        let mut scene = Scene::new();
        scene.value(0, ONE);
        scene.value(1, bad);
        assert_eq!(scene.current(1), Err(SecretCause::ValueInvalid), "{bad:?}");
    }
}

#[test]
fn a_value_shorter_than_its_binding_demands_is_not_used() {
    let mut scene = Scene::new();
    scene.value(0, "12345678");
    assert_eq!(scene.current(0), Err(SecretCause::ValueInvalid));
    let (group, reference) = &scene.key;
    assert!(scene.ledger.snapshot().current(group, reference, 8, scene.at(0)).is_ok());
}

#[test]
fn versions_are_known_for_a_day_and_no_longer() {
    let mut scene = Scene::new();
    scene.value(0, ONE);
    assert_eq!(scene.value(60, TWO), LedgerChange::Rotated);
    assert_eq!(scene.current(60).as_deref(), Ok(TWO));
    assert_eq!(scene.known(), [TWO, ONE]);
    scene.value(120, ONE);
    assert_eq!(scene.known(), [ONE, TWO], "a version that comes back is known once");
    scene.value(120 + 86_399, ONE);
    assert_eq!(scene.known(), [ONE, TWO]);
    scene.value(120 + 86_400, ONE);
    assert_eq!(scene.known(), [ONE]);
}

#[test]
fn the_generation_changes_with_values_and_only_with_them() {
    let mut scene = Scene::new();
    let mut last = scene.generation();
    let mut moved = |scene: &Scene| std::mem::replace(&mut last, scene.generation()) != last;
    scene.error(0, OUTAGE);
    assert!(!moved(&scene));
    scene.value(1, ONE);
    assert!(moved(&scene));
    scene.value(2, ONE);
    scene.error(3, OUTAGE);
    assert!(!moved(&scene));
    scene.value(4, TWO);
    assert!(moved(&scene));
    scene.error(5, DENIED);
    assert!(moved(&scene));
}

#[test]
fn a_secret_that_left_the_policy_is_masked_a_day() {
    let mut scene = Scene::new();
    scene.value(0, ONE);
    scene.ledger.want(&[], scene.at(1));
    assert_eq!(scene.current(1), Err(SecretCause::VaultUnreachable));
    assert_eq!(scene.known(), [ONE]);
    let left = |group: &str| scene.ledger.snapshot().left(&GroupName(group.into())).count();
    assert_eq!((left("agents"), left("others")), (1, 0));
    assert_eq!(scene.value(2, TWO), LedgerChange::Same, "a late answer is dropped");
    assert_eq!(scene.known(), [ONE]);
    scene.ledger.want(&[], scene.at(1 + 86_400));
    assert!(scene.known().is_empty() && scene.ledger.entries.is_empty());
}

#[test]
fn one_groups_value_is_not_anothers() {
    let mut scene = Scene::new();
    scene.value(0, ONE);
    let other = GroupName("others".into());
    let snapshot = scene.ledger.snapshot();
    let asked = snapshot.current(&other, &scene.key.1, 16, scene.at(0));
    assert_eq!(asked.err(), Some(SecretCause::VaultUnreachable));
    assert_eq!(snapshot.known(&other, &scene.key.1, 16).count(), 0);
}

#[test]
fn health_counts_what_is_wanted() {
    let mut scene = Scene::new();
    assert!(!scene.ledger.snapshot().all_asked());
    scene.error(0, DENIED);
    let health = scene.ledger.snapshot().health(scene.at(0));
    assert_eq!(health.available, 0);
    let (group, reference) = scene.key.clone();
    assert_eq!(health.missing, [(group, reference, SecretCause::VaultDenied)]);
    scene.value(1, ONE);
    let snapshot = scene.ledger.snapshot();
    assert!(snapshot.all_asked());
    assert_eq!(snapshot.health(scene.at(1)), SecretsHealth { available: 1, missing: vec![] });
    assert_eq!(snapshot.health(scene.at(301)).available, 0);
}

#[test]
fn a_lent_value_lives_exactly_as_long_as_its_lease() {
    let mut scene = Scene::new();
    scene.lent(0, ONE, Some(30));
    scene.error(10, OUTAGE);
    assert_eq!(scene.current(29).as_deref(), Ok(ONE));
    assert_eq!(scene.current(30), Err(SecretCause::VaultSealed), "max_stale is no way around it");
    let ends = scene.at(4_000);
    scene.ledger.prolong(&scene.key.clone(), ends);
    assert_eq!(scene.current(3_999).as_deref(), Ok(ONE), "nor does it end a lease that goes on");
    assert_eq!(scene.current(4_000), Err(SecretCause::LeaseEnded));
    assert_eq!(scene.known(), [ONE]);
}

#[test]
fn another_word_of_the_owner_changes_no_mask() {
    let mut scene = Scene::new();
    scene.value(0, ONE);
    let before = scene.generation();
    let mut narrowing = Narrowing::default();
    narrowing.set("hosts", "api.example").unwrap();
    let bytes = Zeroizing::new(ONE.as_bytes().to_vec());
    let (key, now) = (scene.key.clone(), scene.at(1));
    let (picked, narrowing) = (bytes.into(), Arc::new(narrowing));
    let fresh = Fresh { picked, asked: now, lease_ends: None, narrowing };
    assert_eq!(scene.ledger.record(&key, Ok(fresh), now), LedgerChange::Same);
    assert_eq!(scene.generation(), before);
    let snapshot = scene.ledger.snapshot();
    assert_ne!(**snapshot.narrowing(&key.0, &key.1).unwrap(), Narrowing::default());
}

#[test]
fn a_bound_on_versions_lets_the_oldest_go_first() {
    let mut scene = Scene::new();
    for number in 0..=MAX_RETIRED as u64 + 1 {
        scene.value(number, &format!("sk-version-{number:016}"));
    }
    let known = scene.known();
    assert_eq!(known.len(), MAX_RETIRED + 1);
    assert!(!known.contains(&format!("sk-version-{:016}", 0)));
    assert!(known.contains(&format!("sk-version-{:016}", 1)));
}

#[test]
fn the_fields_of_a_template_are_masked_like_the_whole() {
    let mut scene = Scene::new();
    let [user, password] =
        ["agent", "password-0123456"].map(|text| Zeroizing::new(text.as_bytes().to_vec()));
    let whole = Zeroizing::new(b"agent:password-0123456".to_vec());
    let picked = PickedValue { whole, parts: vec![user, password] };
    let (key, now) = (scene.key.clone(), scene.at(0));
    let fresh = Fresh { picked, asked: now, lease_ends: None, narrowing: Arc::default() };
    scene.ledger.record(&key, Ok(fresh), now);
    let known = ["agent:password-0123456", "password-0123456"];
    assert_eq!(scene.known(), known, "a short field would mask by chance");
    scene.value(1, ONE);
    assert_eq!(scene.known(), [ONE, known[0], known[1]]);
}

#[test]
fn a_field_is_masked_from_the_length_its_binding_takes() {
    let mut scene = Scene::new();
    let bytes = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
    let fields = ["seven-7", "eight--8", "fifteen------15"];
    let whole = fields.join(":");
    let picked = PickedValue { whole: bytes(&whole), parts: fields.map(bytes).into() };
    let (key, now) = (scene.key.clone(), scene.at(0));
    let fresh = Fresh { picked, asked: now, lease_ends: None, narrowing: Arc::default() };
    scene.ledger.record(&key, Ok(fresh), now);
    let expected = [(8, &fields[1..]), (9, &fields[2..]), (15, &fields[2..]), (16, &fields[3..])];
    for (min_bytes, parts) in expected {
        assert_eq!(scene.known_from(min_bytes), [&[whole.as_str()], parts].concat());
    }
    scene.value(1, ONE);
    for (min_bytes, parts) in expected {
        assert_eq!(scene.known_from(min_bytes)[1..], [&[whole.as_str()], parts].concat());
    }
    scene.ledger.want(&[], scene.at(2));
    let snapshot = scene.ledger.snapshot();
    let left: Vec<_> = snapshot.left(&key.0).cloned().map(text).collect();
    assert_eq!(left, [whole.as_str(), ONE], "no binding takes less any more");
}

#[test]
fn other_fields_that_make_the_same_value_are_masked_too() {
    let mut scene = Scene::new();
    let (key, now) = (scene.key.clone(), scene.at(0));
    let bytes = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
    let whole = "0123456789abcdefghijklmnopqrstuv-xyz";
    for (at, change) in
        [(17, LedgerChange::Arrived), (18, LedgerChange::Rotated), (18, LedgerChange::Same)]
    {
        let (one, other) = whole.split_at(at);
        let picked = PickedValue { whole: bytes(whole), parts: vec![bytes(one), bytes(other)] };
        let fresh = Fresh { picked, asked: now, lease_ends: None, narrowing: Arc::default() };
        assert_eq!(scene.ledger.record(&key, Ok(fresh), now), change);
    }
    let known = scene.known();
    for part in [whole, &whole[..17], &whole[17..], &whole[..18], &whole[18..]] {
        assert!(known.iter().any(|known| known == part), "{part}");
    }
}

#[test]
fn fields_stay_masked_beside_the_keys_they_make() {
    let keys = "AKIDEXAMPLEAKIDEXAMPLE:wJalrXUtnFEMI-K7MDENG";
    let value = SecretValue::load(Zeroizing::new(keys.as_bytes().to_vec()), 8).unwrap();
    let field = |text: &str| maskable(Zeroizing::new(text.as_bytes().to_vec())).unwrap();
    let mut parts = vec![field("EXAMPLEAKIDEXAMPLE"), field("AKIDEXAMPLEAKIDEXAMPLE")];
    assert!(add_keys(&mut parts, &value));
    assert!(!add_keys(&mut parts, &value), "they are known");
    let texts: Vec<_> = parts.into_iter().map(text).collect();
    let (id, secret) = keys.split_once(':').unwrap();
    assert_eq!(texts, ["EXAMPLEAKIDEXAMPLE", id, secret]);
}
