//! The command `cloakroom ca issue`: gives every rule that ends TLS a CA that is right and has time
//! left. Another run changes nothing that is right.

use std::{collections::BTreeSet, fmt, path::Path, time::SystemTime};

use super::{
    CaError, DAY, Fault, FileFault, TlsRule, check, constraint_names,
    folder::{Access, CaFolder, Lock, Overwrite},
    issuing::{self, Pair, certificate_file, key_file},
    root::Root,
    rules_that_end_tls, unix_seconds,
};
use crate::policy::{Constraints, Policy, RuleName};

/// The result for one rule.
#[derive(Debug)]
pub struct Issued {
    /// The rule.
    pub rule: RuleName,
    /// The change.
    pub outcome: IssueOutcome,
}

/// The change for a rule, and its cause.
#[derive(Debug)]
pub enum IssueOutcome {
    /// The CA was right: this many seconds are left.
    Kept(i64),
    /// The CA was replaced, with a new key, because of this fault.
    Made(Fault),
    /// No rule ends TLS under this name any more, but there is a key that agents trust. Nothing is
    /// deleted, because the operator may have given the wrong folder.
    Orphaned,
}

/// Makes in `dir` the issuing CAs that `policy` needs and that are missing, wrong, of another root
/// or in the last third of their lives. All rules are checked before anything is written. Each CA
/// is written whole, and the next run completes one that was cut short.
pub fn issue(
    root: &Root,
    dir: &Path,
    policy: &Policy,
    now: SystemTime,
) -> Result<Vec<Issued>, CaError> {
    let now = unix_seconds(now)?;
    let rules = rules_that_end_tls(policy)?;
    let required = rules.iter().map(RequiredCa::read).collect::<Result<Vec<_>, _>>()?;
    let folder = CaFolder::open_or_make(dir)?;
    if folder.is_same(root.folder()) {
        return Err(CaError::SameFolder(dir.into()));
    }
    let lock = folder.lock_to_write()?;
    let mut issued: Vec<_> = required
        .iter()
        .map(|required| required.issue(root, &folder, &lock, now))
        .collect::<Result<_, _>>()?;
    issued.extend(orphans(&folder, &required)?);
    Ok(issued)
}

/// The properties that the CA of a rule must have.
struct RequiredCa<'a> {
    rule: &'a RuleName,
    names: BTreeSet<&'a str>,
    constraints: Constraints,
}

impl<'a> RequiredCa<'a> {
    fn read(rule: &'a TlsRule) -> Result<Self, CaError> {
        let TlsRule { rule, names, constraints } = rule;
        let names =
            constraint_names(names).ok_or_else(|| CaError::Unconstrainable(rule.clone()))?;
        check_count(rule, &names)?;
        Ok(Self { rule, names, constraints: *constraints })
    }

    fn issue(
        &self,
        root: &Root,
        folder: &CaFolder,
        lock: &Lock<'_>,
        now: i64,
    ) -> Result<Issued, CaError> {
        let outcome = match self.examine(root, folder, now) {
            Ok(left) => IssueOutcome::Kept(left),
            Err(Fault::File { name, fault: fault @ FileFault::Io(_) }) => {
                return Err(folder.error(&name, fault));
            }
            Err(fault) => {
                self.make(root, folder, lock, now)?;
                IssueOutcome::Made(fault)
            }
        };
        Ok(Issued { rule: self.rule.clone(), outcome })
    }

    /// Returns the seconds that are left of a CA that needs no replacement.
    fn examine(&self, root: &Root, folder: &CaFolder, now: i64) -> Result<i64, Fault> {
        let pair = Pair::read(folder, self.rule, &self.names, self.constraints)?;
        check::check_order(&pair.certificate)?;
        check::check_signed_by(&pair.certificate, root.certificate().der())?;
        // A CA that ends with the root gains nothing from a replacement.
        let least = match pair.validity.not_after == root.validity().not_after {
            true => DAY,
            false => (pair.validity.life() / 3).max(DAY).saturating_add(1),
        };
        pair.validity.check(now, least)?;
        Ok(pair.validity.left(now))
    }

    /// Makes and writes the CA. The key goes first: where the machine stops between the two writes,
    /// the remaining pair does not match and is replaced.
    fn make(
        &self,
        root: &Root,
        folder: &CaFolder,
        lock: &Lock<'_>,
        now: i64,
    ) -> Result<(), CaError> {
        let (key, certificate) =
            issuing::make(root, self.rule, (&self.names, self.constraints), now)?;
        let put = |name: String, bytes: &[u8], access| {
            folder
                .write(lock, &name, bytes, (access, Overwrite::Any))
                .map_err(|fault| folder.error(&name, fault))
        };
        put(key_file(self.rule), key.to_pem().as_bytes(), Access::Private)?;
        put(certificate_file(self.rule), certificate.as_bytes(), Access::Public)
    }
}

/// Returns the keys of rules that are gone.
fn orphans(folder: &CaFolder, required: &[RequiredCa<'_>]) -> Result<Vec<Issued>, CaError> {
    let names = folder.names().map_err(|fault| folder.error("", fault))?;
    let stems = names.iter().filter_map(|name| name.strip_suffix(".key"));
    let gone =
        stems.filter(|stem| !required.iter().any(|required| required.rule.as_str() == *stem));
    Ok(gone
        .map(|stem| Issued { rule: RuleName(stem.into()), outcome: IssueOutcome::Orphaned })
        .collect())
}

pub(super) fn check_count(rule: &RuleName, names: &BTreeSet<&str>) -> Result<(), CaError> {
    match names.len() {
        0..=MAX_NAMES => Ok(()),
        _ => Err(CaError::TooManyNames { rule: rule.clone(), most: MAX_NAMES }),
    }
}

impl fmt::Display for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            IssueOutcome::Kept(left) => write!(f, "{}: kept, {} days left", self.rule, left / DAY),
            IssueOutcome::Made(fault) => write!(f, "{}: made, because {fault}", self.rule),
            IssueOutcome::Orphaned => write!(
                f,
                "{0}: no rule that ends TLS has this name; delete {0}.key and {0}.pem",
                self.rule
            ),
        }
    }
}

/// Most names of a rule: about 31 KiB of certificate in each handshake.
const MAX_NAMES: usize = 1_000;

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        sync::{Arc, Barrier},
        thread,
    };

    use super::*;
    use crate::{
        ca::{
            IssuingCa,
            testing::{Installation, api, exact, host, later, now, policy, tls_rule},
        },
        policy::{Api, Carry, DialledRule, Ech, HostPattern, Pass, Upstream},
    };

    fn outcome(installation: &Installation, hosts: &[&str], now: SystemTime) -> String {
        let issued = installation.issue(&policy(vec![api("api", hosts)]), now);
        issued[0].to_string()
    }

    #[test]
    fn what_is_right_is_kept() {
        let made = Installation::new();
        assert_eq!(outcome(&made, &["a.test"], now()), "api: made, because there is none");
        let key = || std::fs::read(made.dir().join("api.key")).unwrap();
        let first = key();
        assert_eq!(outcome(&made, &["a.test", "A.test."], now()), "api: kept, 90 days left");
        assert_eq!(key(), first);
    }

    #[test]
    fn a_ca_is_made_anew_when_its_names_change() {
        let made = Installation::new();
        outcome(&made, &["a.test"], now());
        let said = outcome(&made, &["a.test", "b.test"], now());
        assert_eq!(said, "api: made, because its names are not those of the rule");
        assert!(made.load("api", &exact(&["a.test", "b.test"]), now()).is_ok());
        assert!(made.load("api", &exact(&["a.test"]), now()).is_err(), "fewer names than its CA");
    }

    #[test]
    fn a_ca_is_made_anew_by_another_root() {
        let (made, other) = (Installation::new(), Installation::new());
        outcome(&made, &["a.test"], now());
        let issued =
            issue(&other.root, &made.dir(), &policy(vec![api("api", &["a.test"])]), now()).unwrap();
        assert!(matches!(issued[0].outcome, IssueOutcome::Made(Fault::OtherRoot)));
    }

    #[test]
    fn a_ca_is_renewed_in_its_last_third() {
        let made = Installation::new();
        outcome(&made, &["a.test"], now());
        assert_eq!(outcome(&made, &["a.test"], later(59 * 24)), "api: kept, 31 days left");
        let said = outcome(&made, &["a.test"], later(60 * 24));
        assert!(said.starts_with("api: made, because only "), "{said}");
        assert!(made.load("api", &exact(&["a.test"]), later(60 * 24)).is_ok());
    }

    #[test]
    fn a_ca_is_renewed_when_its_limit_is_said_otherwise() {
        let made = Installation::new();
        let issued = |constraints| {
            let api = Api { constraints, ..api("api", &["a.test"]) };
            made.issue(&policy(vec![api]), now())[0].to_string()
        };
        issued(Constraints::Critical);
        let said = issued(Constraints::Noted);
        assert!(said.ends_with("its name constraints are critical, and not only noted"), "{said}");
        assert_eq!(issued(Constraints::Noted), "api: kept, 90 days left");
        let said = issued(Constraints::Critical);
        assert!(said.ends_with("its name constraints are not critical"), "{said}");
    }

    #[test]
    fn a_ca_never_outlives_its_root() {
        let made = Installation::new();
        let near_end = later(3_600 * 24);
        outcome(&made, &["a.test"], near_end);
        let ends = made.root.validity().not_after;
        let ca = made.load("api", &exact(&["a.test"]), near_end).unwrap();
        assert_eq!(unix_seconds(ca.ends()).unwrap(), ends);
        assert!(outcome(&made, &["a.test"], later(3_640 * 24)).starts_with("api: kept"));
    }

    #[test]
    fn what_is_broken_is_made_anew() {
        let made = Installation::new();
        let names = exact(&["a.test"]);
        let (pem, key) = (made.dir().join("api.pem"), made.dir().join("api.key"));
        let breaks: [&dyn Fn(); 6] = [
            &|| std::fs::remove_file(&key).unwrap(),
            &|| std::fs::write(&pem, "").unwrap(),
            &|| std::fs::write(&key, "x").unwrap(),
            &|| std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap(),
            // A crash between the two files leaves this.
            &|| {
                let old = std::fs::read(&pem).unwrap();
                outcome(&made, &["b.test"], now());
                outcome(&made, &["a.test"], now());
                std::fs::write(&pem, old).unwrap();
                std::fs::write(made.dir().join(".api.pem.new"), "half").unwrap();
            },
            &|| {
                std::fs::rename(&key, made.dir().join("moved")).unwrap();
                std::os::unix::fs::symlink("moved", &key).unwrap();
            },
        ];
        for (number, breaks) in breaks.into_iter().enumerate() {
            outcome(&made, &["a.test"], now());
            breaks();
            assert!(made.load("api", &names, now()).is_err(), "{number}");
            let said = outcome(&made, &["a.test"], now());
            assert!(said.starts_with("api: made"), "{number}: {said}");
            assert!(made.load("api", &names, now()).is_ok(), "{number}");
        }
    }

    #[test]
    fn a_removed_rules_key_is_named_and_not_deleted() {
        let made = Installation::new();
        let both = vec![api("old", &["a.test"]), api("new", &["b.test"])];
        made.issue(&policy(both), now());
        let issued = made.issue(&policy(vec![api("new", &["b.test"])]), now());
        assert!(issued[1].to_string().starts_with("old: no rule"), "{}", issued[1]);
        assert!(made.dir().join("old.key").exists());
    }

    #[test]
    fn racing_runs_leave_one_valid_pair_that_every_reader_sees() {
        let made = Arc::new(Installation::new());
        outcome(&made, &["a.test"], now());
        let barrier = Arc::new(Barrier::new(4));
        let run = |work: fn(&Installation, usize)| {
            let (made, barrier) = (Arc::clone(&made), Arc::clone(&barrier));
            thread::spawn(move || {
                barrier.wait();
                (0..20).for_each(|round| work(&made, round));
            })
        };
        // Each writer uses other names in each round, so that both keep replacing the pair.
        let write = |made: &Installation, round: usize| {
            outcome(made, [&["a.test"], &["b.test"]][round % 2], now());
        };
        let read = |made: &Installation, _: usize| {
            let loaded =
                [&["a.test"], &["b.test"]].map(|hosts| made.load("api", &exact(hosts), now()));
            for error in loaded.into_iter().filter_map(Result::err) {
                let names_only =
                    matches!(error, CaError::Issuing { fault: Fault::NamesDiffer, .. });
                assert!(names_only, "{error}");
            }
        };
        for thread in [run(write), run(write), run(read), run(read)] {
            thread.join().unwrap();
        }
        outcome(&made, &["a.test"], now());
        assert!(made.load("api", &exact(&["a.test"]), now()).is_ok());
    }

    #[test]
    fn inspected_names_get_a_ca_and_spliced_ones_none() {
        let made = Installation::new();
        let pass = |name: &str, carry, hosts| {
            Arc::new(Pass {
                name: RuleName(name.into()),
                carry,
                groups: Vec::new(),
                hosts,
                ports: vec![443],
                upstream: Upstream::default(),
                dialled: DialledRule::Answered,
            })
        };
        let constraints = Constraints::Noted;
        let inspect = || Carry::Inspect {
            methods: Vec::new(),
            paths: Vec::new(),
            websocket: false,
            constraints,
        };
        let suffix = vec![HostPattern::Suffix(host("a.test"))];
        let mut policy = policy(vec![]);
        let passes = vec![
            pass("looked-at", inspect(), suffix.clone()),
            pass("through", Carry::Splice { ech: Ech::Refuse }, vec![HostPattern::Any]),
        ];
        policy.passes = passes.clone().into();
        assert_eq!(made.issue(&policy, now()).len(), 1);
        assert!(made.load("looked-at", &suffix, now()).is_err(), "it is noted, not critical");
        let noted = TlsRule { constraints, ..tls_rule("looked-at", &suffix) };
        let ca = IssuingCa::load(&made.dir(), &noted, now()).unwrap();
        assert!(ca.covers(&host("b.a.test")) && !ca.covers(&host("a.test")));

        let with = |more| Policy {
            passes: [passes.clone(), vec![more]].concat().into(),
            ..policy.clone()
        };
        let policy = with(pass("all", inspect(), vec![HostPattern::Any]));
        let refused = issue(&made.root, &made.dir(), &policy, now());
        assert!(matches!(refused, Err(CaError::Unconstrainable(_))));
        let policy = with(pass("nothing", inspect(), vec![]));
        let refused = issue(&made.root, &made.dir(), &policy, now());
        assert!(matches!(refused, Err(CaError::Unconstrainable(_))));
        let policy = with(pass("looked-at", inspect(), suffix));
        let refused = issue(&made.root, &made.dir(), &policy, now());
        assert!(matches!(refused, Err(CaError::SameName(_))));
    }

    #[test]
    fn the_roots_folder_is_no_place_for_issuing_cas() {
        let made = Installation::new();
        let dir = made.scratch.path("root");
        let refused = issue(&made.root, &dir, &policy(vec![api("root", &["a.test"])]), now());
        assert!(matches!(refused, Err(CaError::SameFolder(_))));
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let made = Installation::new();
        outcome(&made, &["a.test"], now());
        std::fs::set_permissions(made.dir(), PermissionsExt::from_mode(0o775)).unwrap();
        assert!(made.load("api", &exact(&["a.test"]), now()).is_err());
        assert!(issue(&made.root, &made.dir(), &policy(vec![]), now()).is_err());
    }
}
