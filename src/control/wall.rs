//! A wall clock that is not believed at once. Expiry counts in wall time, and a clock that jumps a day
//! ahead by mistake must not log everybody out (RELIABILITY row 79): after a jump of more than an hour
//! time goes on as before it, until the jump has stood for a while or was undone. Pure.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::clock::Now;

/// A step between two readings that is no NTP correction any more.
const JUMP: Duration = Duration::from_secs(3600);
/// How long a jump has to stand before it is believed.
const GRACE: Duration = Duration::from_secs(600);

/// Compares the two clocks at every reading.
#[derive(Debug, Default)]
pub(super) struct Wall {
    last: Option<Now>,
    /// By how much the wall clock is ahead of the time that is believed.
    ahead: chrono::Duration,
    /// When the jump is believed.
    until: Option<Instant>,
}

fn signed(d: Duration) -> chrono::Duration {
    chrono::Duration::from_std(d).unwrap_or(chrono::Duration::MAX)
}

impl Wall {
    /// The moment as it is believed.
    pub(super) fn look(&mut self, now: Now) -> Now {
        if let Some(last) = self.last {
            // Another thread may have read a moment later and come here sooner.
            if now.mono < last.mono {
                return self.believed(now);
            }
            let went = signed(now.mono.saturating_duration_since(last.mono));
            let jump = now.wall.signed_duration_since(last.wall) - went;
            if jump.abs() > signed(JUMP) {
                self.jumped(jump, now);
            }
        }
        self.last = Some(now);
        if self.until.is_some_and(|until| until <= now.mono) {
            tracing::warn!(by = %self.ahead, "the clock has stood after its jump; it is believed now");
            self.ahead = chrono::Duration::zero();
            self.until = None;
        }
        self.believed(now)
    }

    fn jumped(&mut self, jump: chrono::Duration, now: Now) {
        let ahead = self.ahead.checked_add(&jump).unwrap_or(jump);
        if ahead.abs() <= signed(JUMP) {
            tracing::warn!("the clock jumped back to where it was; nothing expired");
            self.ahead = chrono::Duration::zero();
            self.until = None;
            return;
        }
        tracing::warn!(by = %jump, "the clock jumped; nothing expires by it for 10 minutes");
        self.ahead = ahead;
        self.until = Some(now.mono + GRACE);
    }

    fn believed(&self, now: Now) -> Now {
        let wall = now.wall.checked_sub_signed(self.ahead).unwrap_or(now.wall);
        Now { mono: now.mono, wall }
    }

    /// What an admin should know while a jump is not believed.
    #[must_use]
    pub(super) fn warning(&self) -> Option<String> {
        self.until?;
        let seconds = self.ahead.num_seconds();
        let way = if seconds < 0 { "back" } else { "ahead" };
        let hours = seconds.unsigned_abs() / 3600;
        let wall: DateTime<Utc> = self.last?.wall;
        Some(format!(
            "this machine's clock jumped {way} by {hours} h to {}; keys expire by the old time until it has stood for 10 minutes: check the clock (timedatectl)",
            wall.format("%Y-%m-%d %H:%M UTC")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shifted(now: Now, hours: i64) -> Now {
        Now { wall: now.wall + chrono::Duration::hours(hours), ..now }
    }

    #[test]
    fn a_jump_is_believed_only_after_it_stood() {
        for hours in [24, -24, 24 * 365 * 70, -24 * 365 * 50] {
            let mut wall = Wall::default();
            let start = Now::read();
            let at = |s: u64| start.after(Duration::from_secs(s));
            assert_eq!(wall.look(start), start);
            assert_eq!(wall.look(shifted(at(1), hours)), at(1), "time goes on as before");
            assert!(wall.warning().is_some());
            assert_eq!(wall.look(shifted(at(600), hours)), at(600));
            let stood = shifted(at(601), hours);
            assert_eq!(wall.look(stood), stood);
            assert_eq!(wall.warning(), None);
        }
    }

    #[test]
    fn an_undone_jump_leaves_nothing_and_small_steps_are_taken() {
        let mut wall = Wall::default();
        let start = Now::read();
        let at = |s: u64| start.after(Duration::from_secs(s));
        wall.look(start);
        wall.look(shifted(at(1), 48));
        assert_eq!(wall.look(at(2)), at(2));
        assert_eq!(wall.warning(), None);
        let step = Now { wall: at(3).wall + chrono::Duration::minutes(5), ..at(3) };
        assert_eq!(wall.look(step), step);
        // A machine that slept an hour by both clocks did not jump.
        assert_eq!(wall.look(step.after(2 * JUMP)), step.after(2 * JUMP));
    }
}
