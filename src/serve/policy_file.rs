//! The policy file: read and checked before anything else changes, put in force afterwards, so that a
//! bad file changes nothing. Faults name file, line and column.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use crate::control::service::{Actor, AdminError, Control};

/// No policy is larger; a device file or a database named by mistake is.
const MAX_FILE: u64 = 64 << 20;

/// A policy file whose text was found good.
#[derive(Debug)]
pub(super) struct PolicyFile {
    path: PathBuf,
    text: String,
    start: bool,
}

fn by() -> Actor {
    Actor::local("policy file")
}

/// Reads and checks the file; changes nothing. `start`: its tests are not asked, for the devices they
/// name may be yet to come.
///
/// # Errors
/// When it cannot be read, or with every fault at its place.
pub(super) async fn read(control: &Control, path: &Path, start: bool) -> anyhow::Result<PolicyFile> {
    let unreadable = || format!("policy_file: cannot read {}; check the name and its mode", path.display());
    let size = tokio::fs::metadata(path).await.with_context(unreadable)?.len();
    if size > MAX_FILE {
        return Err(anyhow!("policy_file: {} of {size} bytes is no policy", path.display()));
    }
    let text = tokio::fs::read_to_string(path).await.with_context(unreadable)?;
    let file = PolicyFile { path: path.to_owned(), text, start };
    if file.in_force(control) {
        return Ok(file);
    }
    let checked = if start {
        control.check_policy_at_start(&by(), &file.text).await
    } else {
        control.check_policy(&by(), &file.text).await
    };
    match checked {
        Ok(_) => Ok(file),
        Err(error) => Err(file.placed(error)),
    }
}

impl PolicyFile {
    /// What is in force already needs no check: tests that broke since are reported, not refused.
    fn in_force(&self, control: &Control) -> bool {
        let current = control.policy();
        current.version > 0 && current.text == self.text
    }

    /// Puts the policy in force when it differs from what is stored. The file is the admin's own word,
    /// so access it takes away needs no further question.
    ///
    /// # Errors
    /// When the disk fails, or what the policy names went away since the check.
    pub(super) async fn apply(&self, control: &Control) -> anyhow::Result<()> {
        if self.in_force(control) {
            return Ok(());
        }
        let stored = control.set_policy_from_file(&by(), &self.text, self.start).await;
        let outcome = stored.map_err(|error| self.placed(error))?;
        tracing::info!(version = outcome.version, file = %self.path.display(), "policy file in force");
        Ok(())
    }

    fn placed(&self, error: AdminError) -> anyhow::Error {
        let AdminError::Policy(faults) = error else {
            return error.into();
        };
        let line = |f: &crate::acl::PolicyError| {
            let hint = if f.hint.is_empty() { String::new() } else { format!(", {}", f.hint) };
            format!("{}:{}:{}: {}{hint}", self.path.display(), f.line, f.column, f.message)
        };
        anyhow!(faults.iter().map(line).collect::<Vec<_>>().join("\n"))
    }
}
