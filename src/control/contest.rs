//! Two machines with one identity (a cloned disk) push each other's stream out, each as fast as it can
//! dial. Noticed by how often that happens, and slowed down to one change of hands per half minute
//! (RELIABILITY row 24). Pure.

use std::time::{Duration, Instant};

/// Changes of hands within the window that one machine alone does not come to.
const MANY: u32 = 4;
/// The window, and the pace once it is a contest.
const PACE: Duration = Duration::from_secs(30);
/// A contest is over when nobody was pushed out for this long.
const OVER: Duration = Duration::from_secs(600);

/// One node's streams.
#[derive(Debug, Default)]
pub(super) struct Contest {
    /// Since when `count` is counted.
    since: Option<Instant>,
    count: u32,
    /// The last change of hands.
    last: Option<Instant>,
    /// The last time somebody wanted one.
    wanted: Option<Instant>,
    on: bool,
}

impl Contest {
    /// A new stream wants to push a living one out.
    ///
    /// # Errors
    /// When it has to wait: until when.
    pub(super) fn replace(&mut self, now: Instant) -> Result<(), Instant> {
        self.calm_down(now);
        self.wanted = Some(now);
        if self.since.is_none_or(|since| now.saturating_duration_since(since) > PACE) {
            self.since = Some(now);
            self.count = 0;
        }
        self.count += 1;
        self.on |= self.count > MANY;
        if self.on
            && let Some(turn) = self.last.map(|last| last + PACE)
            && turn > now
        {
            return Err(turn);
        }
        self.last = Some(now);
        Ok(())
    }

    /// Ends a contest in which nobody moved for long.
    pub(super) fn calm_down(&mut self, now: Instant) {
        let quiet = self.wanted.is_none_or(|at| now.saturating_duration_since(at) > OVER);
        self.on &= !quiet;
    }

    /// Whether there is one.
    #[must_use]
    pub(super) fn on(&self) -> bool {
        self.on
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    #[test]
    fn two_clones_change_hands_every_half_minute_only() {
        let start = Now::read().mono;
        let mut contest = Contest::default();
        let mut changes = 0;
        for tenths in 0..3000_u32 {
            changes += u32::from(contest.replace(start + tenths * Duration::from_millis(100)).is_ok());
        }
        assert!((12..=16).contains(&changes), "{changes} in five minutes");
        assert!(contest.on());
        contest.calm_down(start + 2 * OVER);
        assert!(!contest.on());
    }

    #[test]
    fn a_machine_that_reconnects_now_and_then_never_waits() {
        let start = Now::read().mono;
        let mut contest = Contest::default();
        for n in 0..100 {
            assert_eq!(contest.replace(start + n * Duration::from_secs(10)), Ok(()));
        }
        assert!(!contest.on());
    }
}
