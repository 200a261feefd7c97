//! The policy's life as others steer it: check, store, look back, go back. Reading, compiling and
//! comparing happen beside the owner; only the last step is a command.

use std::net::IpAddr;
use std::sync::Arc;

use super::policy::{self, Author, Refuse};
use super::service::Control;
use super::types::{Actor, AdminError, PolicyOutcome};
use crate::acl::{Policy, PolicyError};
use crate::clock::Now;
use crate::model::{PolicySummary, PolicyVersion};
use crate::store::Store;

/// So often a policy is compared anew because devices came or went meanwhile.
const POLICY_TRIES: u32 = 3;
/// Versions that are tried at start when the newest cannot be read.
const OLDER: usize = 100;

/// Tells the addresses of this machine.
pub type Addresses = Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>;

/// A policy that is to be stored.
#[derive(Clone)]
struct Wish {
    text: Arc<str>,
    comment: String,
    confirmed: bool,
    expect: Option<u64>,
    refuse: Refuse,
}

fn failed(error: impl std::fmt::Display) -> AdminError {
    AdminError::Internal(error.to_string())
}

impl Control {
    /// The policy in force: its text (a commented default when none was stored) and number.
    #[must_use]
    pub fn policy(&self) -> PolicyVersion {
        PolicyVersion::clone(&self.net().policy_version)
    }

    /// All stored policies without their texts, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn policy_history(&self) -> Result<Vec<PolicySummary>, AdminError> {
        self.shared().store.policies().await.map_err(failed)
    }

    /// One stored policy with its text.
    ///
    /// # Errors
    /// When there is none with this number, or the database cannot be read.
    pub async fn policy_at(&self, version: u64) -> Result<PolicyVersion, AdminError> {
        let current = Arc::clone(&self.net().policy_version);
        if current.version == version {
            return Ok(PolicyVersion::clone(&current));
        }
        let found = self.shared().store.policy(version).await.map_err(failed)?;
        found.ok_or_else(|| {
            AdminError::NotFound(format!(
                "there is no policy version {version}; `tsd policy history` shows all"
            ))
        })
    }

    /// Tests of the policy in force that do not hold. Found again soon after users, devices or routes
    /// changed.
    #[must_use]
    pub fn broken_tests(&self) -> Vec<PolicyError> {
        self.shared().broken.borrow().to_vec()
    }

    /// Why the policy stored last is not in force, when it could not be read.
    #[must_use]
    pub fn policy_fault(&self) -> Option<String> {
        self.net().policy_fault.as_ref().map(ToString::to_string)
    }

    /// How to learn the addresses of this machine; without it nobody is warned of losing the way here.
    pub fn on_addresses(&self, addresses: Addresses) {
        *self.shared().addresses.write() = Some(addresses);
    }

    /// Checks a text against the live tailnet, tests included; changes nothing.
    ///
    /// # Errors
    /// [`AdminError::Policy`] with all faults.
    pub async fn check_policy(&self, by: &Actor, text: &str) -> Result<PolicyOutcome, AdminError> {
        self.looked_at(by, text, Refuse::Everything).await
    }

    /// As [`Control::check_policy`], for the policy file at start: its tests are not asked, for the devices
    /// they name may be yet to come.
    ///
    /// # Errors
    /// [`AdminError::Policy`] with all faults.
    pub async fn check_policy_at_start(&self, by: &Actor, text: &str) -> Result<PolicyOutcome, AdminError> {
        self.looked_at(by, text, Refuse::Faults).await
    }

    async fn looked_at(&self, by: &Actor, text: &str, refuse: Refuse) -> Result<PolicyOutcome, AdminError> {
        let (net, author, text) = (self.net(), self.author(by), Arc::from(text));
        let checked = tokio::task::spawn_blocking(move || {
            let parsed = policy::parse(&text)?;
            Ok(policy::prepare(&net, &author, text, parsed, refuse)?.outcome)
        });
        checked.await.unwrap_or_else(|e| Err(failed(e)))
    }

    /// Stores a text and applies it to connected clients; the very text in force is not stored again, and
    /// its comment is not kept. `expect` is the version the editor started
    /// from: when another was stored meanwhile, nothing is changed.
    ///
    /// # Errors
    /// Faults, failing tests, a lost race, a configured policy file, or
    /// [`AdminError::NeedsConfirmation`] without `confirmed`.
    pub async fn set_policy(
        &self,
        by: &Actor,
        text: &str,
        comment: &str,
        confirmed: bool,
        expect: Option<u64>,
    ) -> Result<PolicyOutcome, AdminError> {
        if let Some(file) = &self.net().settings.policy_file {
            return Err(AdminError::Conflict(format!(
                "the policy comes from the file {0}: what is stored here would be lost at the next reload. Change {0} and reload the server (SIGHUP), or take policy_file out of its configuration",
                file.display()
            )));
        }
        let comment = policy::comment(comment)?;
        let wish = Wish { text: text.into(), comment, confirmed, expect, refuse: Refuse::Everything };
        self.store_policy(by, wish).await
    }

    /// Stores the text of the policy file, the admin's own word: access it takes away needs no question.
    /// At start failing tests are only reported.
    ///
    /// # Errors
    /// Faults, and but at start failing tests.
    pub async fn set_policy_from_file(
        &self,
        by: &Actor,
        text: &str,
        at_start: bool,
    ) -> Result<PolicyOutcome, AdminError> {
        let refuse = if at_start { Refuse::Faults } else { Refuse::Everything };
        let wish = Wish { text: text.into(), comment: String::new(), confirmed: true, expect: None, refuse };
        self.store_policy(by, wish).await
    }

    /// Stores an old text as a new version, with the same questions as any other.
    ///
    /// # Errors
    /// As [`Control::set_policy`], or when there is no such version.
    pub async fn rollback_policy(
        &self,
        by: &Actor,
        version: u64,
        comment: &str,
        confirmed: bool,
        expect: Option<u64>,
    ) -> Result<PolicyOutcome, AdminError> {
        let old = self.policy_at(version).await?;
        let comment = match comment.trim() {
            "" => format!("back to version {version}"),
            why => format!("back to version {version}: {why}"),
        };
        self.set_policy(by, &old.text, &comment, confirmed, expect).await
    }

    fn author(&self, by: &Actor) -> Author {
        let addresses = self.shared().addresses.read().clone();
        let server = match (by.from, addresses) {
            (Some(_), Some(addresses)) => addresses(),
            _ => Vec::new(),
        };
        Author { from: by.from, server }
    }

    async fn store_policy(&self, by: &Actor, wish: Wish) -> Result<PolicyOutcome, AdminError> {
        for tries in 1..=2 * POLICY_TRIES {
            // Reading, compiling and comparing may take seconds; the owner goes on meanwhile.
            let (net, author) = (self.net(), self.author(by));
            let (text, refuse) = (Arc::clone(&wish.text), wish.refuse);
            let prepared = tokio::task::spawn_blocking(move || {
                let parsed = policy::parse(&text)?;
                policy::prepare(&net, &author, text, parsed, refuse)
            });
            let prepared = prepared.await.unwrap_or_else(|e| Err(failed(e)))?;
            let (by, comment) = (by.name.clone(), wish.comment.clone());
            let (confirmed, expect, stale) = (wish.confirmed, wish.expect, tries >= POLICY_TRIES);
            let done = self.run(move |draft| {
                let stored = policy::Stored { by: &by, comment: &comment, confirmed, expect, stale };
                let outcome = policy::set(draft, prepared, stored)?;
                if let Some(outcome) = outcome.as_ref().filter(|outcome| outcome.applied) {
                    tracing::info!(%by, version = outcome.version, "policy stored");
                }
                Ok(outcome)
            });
            if let Some(outcome) = done.await? {
                return Ok(outcome);
            }
        }
        Err(AdminError::Conflict("the policy keeps being changed by somebody else; try again".into()))
    }
}

/// What is in force after a start.
pub(super) struct Beginning {
    /// Number and text.
    pub(super) version: PolicyVersion,
    /// As read.
    pub(super) policy: Policy,
    /// The newest one could not be read.
    pub(super) fault: Option<String>,
}

/// The newest stored policy that can be read. A server whose policy is unreadable still starts, with the
/// last one that can be read, else with one that lets nobody through (RELIABILITY 65).
///
/// # Errors
/// When the database cannot be read.
pub(super) async fn beginning(
    store: &Store,
    newest: Option<PolicyVersion>,
    now: Now,
) -> anyhow::Result<Beginning> {
    let made = |text: &str, author: &str| PolicyVersion {
        version: 0,
        text: text.to_owned(),
        author: author.to_owned(),
        comment: String::new(),
        created: now.wall,
    };
    let Some(newest) = newest else {
        let version = made(policy::DEFAULT_TEXT, "default");
        return Ok(Beginning { version, policy: Policy::hosted_default(), fault: None });
    };
    let faults = match Policy::parse(&newest.text) {
        Ok(policy) => return Ok(Beginning { version: newest, policy, fault: None }),
        Err(faults) => faults,
    };
    let first = faults.first().map(|f| format!("{}:{}: {}", f.line, f.column, f.message));
    let sentence = |instead: &str| {
        format!(
            "the stored policy (version {}) cannot be read by this program: {}; {instead} until a mended one is stored (`tsd policy show {0}`, `tsd policy set`), or the tsd that stored it is started again",
            newest.version,
            first.clone().unwrap_or_default(),
        )
    };
    let older = store.policies().await?.into_iter().filter(|p| p.version < newest.version);
    for summary in older.take(OLDER) {
        let Some(version) = store.policy(summary.version).await? else {
            continue;
        };
        if let Ok(policy) = Policy::parse(&version.text) {
            let fault = sentence(&format!("version {} is in force instead", version.version));
            return Ok(Beginning { version, policy, fault: Some(fault) });
        }
    }
    let version = made(policy::NOBODY_TEXT, "start");
    let Ok(policy) = Policy::parse(policy::NOBODY_TEXT) else {
        anyhow::bail!("the policy that lets nobody through cannot be read");
    };
    Ok(Beginning {
        version,
        policy,
        fault: Some(sentence("no other can be read either, so nobody reaches anybody")),
    })
}
