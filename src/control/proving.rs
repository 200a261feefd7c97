//! The policy's tests, run again whenever users, devices or routes changed. Beside the owner, after a
//! moment of quiet, on the newest snapshot: a thousand joins cost a few runs, not a thousand.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::owner::Shared;
use crate::acl::PolicyError;

/// Changes that come this close together are looked at once.
const QUIET: Duration = Duration::from_millis(250);

/// Runs until `stop` says so or its sender is gone.
pub(super) async fn watch(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut worlds = shared.worlds.subscribe();
    loop {
        worlds.borrow_and_update();
        let net = shared.net.load_full();
        let ast = net.policy.ast();
        let has_tests = !(ast.tests.is_empty() && ast.ssh_tests.is_empty());
        let found = if has_tests {
            let compiled = Arc::clone(&net.compiled);
            match tokio::task::spawn_blocking(move || compiled.failing_tests()).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(%error, "the policy's tests could not be run");
                    Vec::new()
                }
            }
        } else {
            Vec::new()
        };
        drop(net);
        tell(&shared, found);
        tokio::select! {
            _ = stop.wait_for(|s| *s) => return,
            changed = worlds.changed() => if changed.is_err() { return },
        }
        tokio::select! {
            _ = stop.wait_for(|s| *s) => return,
            () = tokio::time::sleep(QUIET) => {}
        }
    }
}

/// Keeps what was found; the log hears of it when it changes.
fn tell(shared: &Shared, found: Vec<PolicyError>) {
    let before = shared.broken.borrow().clone();
    if *before == found {
        return;
    }
    for test in found.iter().filter(|t| !before.contains(t)) {
        tracing::warn!(
            line = test.line,
            column = test.column,
            "a test of the policy does not hold: {}",
            test.message
        );
    }
    if found.is_empty() {
        tracing::info!("all tests of the policy hold again");
    }
    shared.broken.send_replace(Arc::new(found));
}
