//! The choice of the home region from the reports of the last five minutes, with enough inertia that it
//! does not flap (dataplane.md 1.9).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::keys::RegionId;

const WINDOW: Duration = Duration::from_secs(305);
/// A better region must gain this much, and a third.
const MIN_GAIN: Duration = Duration::from_millis(10);
/// A frame this recent shows that the home is reachable.
const FRAME_RECENT: Duration = Duration::from_secs(8);
/// And this recent that it is worth keeping when nothing could be measured.
const FRAME_KEEP: Duration = Duration::from_secs(120);
const MAX_REPORTS: usize = 64;

/// Latencies of recent reports.
#[derive(Debug, Default)]
pub(crate) struct History {
    reports: VecDeque<(Instant, Instant, BTreeMap<RegionId, Duration>)>,
}

/// What the choice depends on beside the reports.
#[derive(Debug)]
pub(crate) struct Sample<'a> {
    /// Regions that may be home.
    pub(crate) usable: &'a [RegionId],
    /// Factors on the latency.
    pub(crate) scores: &'a BTreeMap<RegionId, f64>,
    /// When each region was last heard.
    pub(crate) frames: &'a VecDeque<(RegionId, Instant)>,
    /// The home so far.
    pub(crate) home: Option<RegionId>,
    /// Now.
    pub(crate) now: Instant,
}

impl History {
    /// Adds the report of a measurement that began at `started`.
    pub(crate) fn add(&mut self, now: Instant, started: Instant, latency: BTreeMap<RegionId, Duration>) {
        self.reports.push_back((now, started, latency));
        while self.reports.len() > MAX_REPORTS
            || self.reports.front().is_some_and(|(at, _, _)| now >= *at + WINDOW)
        {
            self.reports.pop_front();
        }
    }

    /// The `n` fastest regions of the last report.
    pub(crate) fn fastest(&self, n: usize) -> Vec<RegionId> {
        let mut all: Vec<(Duration, RegionId)> =
            self.reports.back().into_iter().flat_map(|(_, _, l)| l.iter().map(|(r, d)| (*d, *r))).collect();
        all.sort_unstable();
        all.into_iter().take(n).map(|(_, r)| r).collect()
    }

    fn best_recent(&self, region: RegionId, s: &Sample<'_>) -> Option<Duration> {
        let best = self.reports.iter().filter_map(|(_, _, l)| l.get(&region).copied()).min()?;
        let score = s.scores.get(&region).copied();
        let score = score.filter(|f| f.is_finite() && *f > 0.0 && *f <= 1e6);
        Some(best.mul_f64(score.unwrap_or(1.0)))
    }

    /// The home to have after the newest report; `None` when it says nothing.
    pub(crate) fn choose(&self, s: &Sample<'_>) -> Option<RegionId> {
        let (_, started, newest) = self.reports.back()?;
        let heard =
            |within: Duration| s.frames.iter().any(|(r, at)| Some(*r) == s.home && s.now < *at + within);
        let candidate = newest
            .keys()
            .filter(|r| s.usable.contains(r))
            .filter_map(|r| Some((self.best_recent(*r, s)?, *r)))
            .min();
        let Some((best, region)) = candidate else {
            return s.home.filter(|_| heard(FRAME_KEEP));
        };
        let Some(old) = s.home.filter(|h| *h != region && s.usable.contains(h)) else {
            return Some(region);
        };
        let since_start = s.now.saturating_duration_since(*started);
        let reachable = newest.contains_key(&old) || heard(FRAME_RECENT.max(since_start));
        let Some(had) = self.best_recent(old, s).filter(|_| reachable) else {
            return Some(region);
        };
        let small = had.saturating_sub(best) < MIN_GAIN || best * 3 > had * 2;
        Some(if small { old } else { region })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn choose(reports: &[&[(u64, u64)]], home: Option<u64>) -> Option<RegionId> {
        let now = Now::read().mono;
        let mut history = History::default();
        for r in reports {
            let l = r.iter().map(|(id, d)| (RegionId(*id), ms(*d))).collect();
            history.add(now, now, l);
        }
        let usable = [RegionId(1), RegionId(2), RegionId(3)];
        history.choose(&Sample {
            usable: &usable,
            scores: &BTreeMap::new(),
            frames: &VecDeque::new(),
            home: home.map(RegionId),
            now,
        })
    }

    #[test]
    fn the_fastest_is_chosen_and_kept_against_small_gains() {
        assert_eq!(choose(&[&[(1, 20), (2, 30)]], None), Some(RegionId(1)));
        assert_eq!(choose(&[&[(1, 20), (2, 30)]], Some(2)), Some(RegionId(1)));
        assert_eq!(choose(&[&[(1, 25), (2, 30)]], Some(2)), Some(RegionId(2)));
        assert_eq!(choose(&[&[(1, 4), (2, 12)]], Some(2)), Some(RegionId(2)));
        assert_eq!(choose(&[&[(1, 80), (2, 100)]], Some(2)), Some(RegionId(2)));
    }

    #[test]
    fn an_unreachable_home_is_left_and_only_the_newest_report_gives_candidates() {
        assert_eq!(choose(&[&[(2, 10)], &[(1, 80)]], Some(2)), Some(RegionId(1)));
        assert_eq!(choose(&[&[(2, 10)], &[]], None), None);
        assert_eq!(choose(&[&[(9, 1), (1, 80)]], None), Some(RegionId(1)));
    }
}
