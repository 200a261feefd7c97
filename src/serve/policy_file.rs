//! The policy file: read and checked before anything else changes, put in force afterwards, so that a
//! bad file changes nothing. Faults name file, line and column.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use crate::control::service::{Actor, AdminError, Control};

/// No policy is larger; a device file or a database named by mistake is.
const MAX_FILE: u64 = 8 << 20;

/// A policy file whose text was found good.
#[derive(Debug)]
pub(super) struct PolicyFile {
    path: PathBuf,
    text: String,
}

/// Reads and checks the file; changes nothing.
///
/// # Errors
/// When it cannot be read, or with every fault at its place.
pub(super) async fn read(control: &Control, path: &Path) -> anyhow::Result<PolicyFile> {
    let unreadable = || format!("policy_file: cannot read {}; check the name and its mode", path.display());
    let size = tokio::fs::metadata(path).await.with_context(unreadable)?.len();
    if size > MAX_FILE {
        return Err(anyhow!("policy_file: {} of {size} bytes is no policy", path.display()));
    }
    let text = tokio::fs::read_to_string(path).await.with_context(unreadable)?;
    let file = PolicyFile { path: path.to_owned(), text };
    match control.check_policy(&file.text).await {
        Ok(_) => Ok(file),
        Err(error) => Err(file.placed(error)),
    }
}

impl PolicyFile {
    /// Puts the policy in force when it differs from what is stored. The file is the admin's own word,
    /// so access it takes away needs no further question.
    ///
    /// # Errors
    /// When the disk fails, or what the policy names went away since the check.
    pub(super) async fn apply(&self, control: &Control) -> anyhow::Result<()> {
        if control.policy().text == self.text {
            return Ok(());
        }
        let by = Actor("policy file".to_owned());
        let outcome =
            control.set_policy(&by, &self.text, true, None).await.map_err(|error| self.placed(error))?;
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
