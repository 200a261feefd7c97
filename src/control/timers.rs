//! What happens by the clock alone: keys expire, ephemeral nodes leave, logins lapse.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::state::Draft;
use crate::keys::NodeId;
use crate::model::LoginId;

/// An ephemeral node is never removed sooner after its registration (RELIABILITY row 36).
const FIRST_POLL: Duration = Duration::from_secs(60);

/// Does everything that is due. `started` is when the server began: nobody could be seen before.
pub(super) fn tick(draft: &mut Draft, started: DateTime<Utc>) {
    let now = draft.now.wall;
    let due: Vec<_> = draft
        .net
        .nodes
        .values()
        .filter(|n| n.expired(now) != draft.net.expired.contains(&n.id))
        .cloned()
        .collect();
    for node in due {
        tracing::info!(node = %node.id, "node key expired or was extended");
        draft.note_expiry(&node);
    }
    for id in idle_ephemeral(draft, started) {
        tracing::info!(node = %id, "ephemeral node removed");
        draft.delete_node(id);
    }
    let lapsed: Vec<LoginId> =
        draft.net.logins.values().filter(|l| l.expires <= now).map(|l| l.id.clone()).collect();
    for id in lapsed {
        draft.drop_login(&id);
    }
    if draft.net.rejected.values().any(|until| *until <= now) {
        Arc::make_mut(&mut draft.net.rejected).retain(|_, until| *until > now);
    }
}

fn idle_ephemeral(draft: &Draft, started: DateTime<Utc>) -> Vec<NodeId> {
    let patience = draft.net.settings.ephemeral_timeout.max(Duration::ZERO);
    let past = |since: DateTime<Utc>, wait: Duration| {
        chrono::Duration::from_std(wait)
            .ok()
            .and_then(|w| since.checked_add_signed(w))
            .is_some_and(|at| at <= draft.now.wall)
    };
    draft
        .net
        .nodes
        .values()
        .filter(|n| n.ephemeral && !draft.net.online.contains(&n.id))
        .filter(|n| {
            let seen = n.last_seen.unwrap_or(n.created).max(started);
            past(seen, patience) && past(n.created, FIRST_POLL)
        })
        .map(|n| n.id)
        .collect()
}
