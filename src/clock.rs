//! Time and randomness as values.
//!
//! Pure rooms never ask the machine what time it is or for entropy: they are handed a [`Now`] with
//! every call and an [`Rng`] when they are made. [`Now::read`] and [`Rng::from_os`] are the only
//! places in production code that read the clock and the kernel's entropy.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// One moment, on both clocks: `mono` for durations and timers, `wall` for what people and peers read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time; never jumps. All timers are computed from it.
    pub mono: Instant,
    /// Wall time; may jump. Only for expiry and display.
    pub wall: DateTime<Utc>,
}

impl Now {
    /// Reads both clocks. For shells only.
    #[expect(clippy::disallowed_methods, reason = "the one production reader of the clocks")]
    #[must_use]
    pub fn read() -> Self {
        Self { mono: Instant::now(), wall: Utc::now() }
    }

    /// The moment `by` later on both clocks; how tests step time.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        let wall = chrono::Duration::from_std(by)
            .ok()
            .and_then(|d| self.wall.checked_add_signed(d))
            .unwrap_or(DateTime::<Utc>::MAX_UTC);
        Self { mono: self.mono + by, wall }
    }
}

/// A seeded, cryptographically strong random source.
#[derive(Clone)]
pub struct Rng(ChaCha20Rng);

impl std::fmt::Debug for Rng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rng(..)")
    }
}

impl Rng {
    /// Seeds from the kernel. For shells only.
    ///
    /// # Panics
    /// When the kernel cannot give entropy: nothing secret may be made then.
    #[must_use]
    pub fn from_os() -> Self {
        let mut seed = [0_u8; 32];
        #[expect(
            clippy::expect_used,
            clippy::disallowed_methods,
            reason = "the one reader of the kernel's entropy"
        )]
        getrandom::fill(&mut seed).expect("the kernel gives entropy");
        Self::from_seed(seed)
    }

    /// A source that repeats itself for equal seeds; for tests and simulations.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ChaCha20Rng::from_seed(seed))
    }

    /// Fills `buf`.
    pub fn fill(&mut self, buf: &mut [u8]) {
        self.0.fill_bytes(buf);
    }

    /// `N` random bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0_u8; N];
        self.0.fill_bytes(&mut out);
        out
    }

    /// A random number.
    #[must_use]
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `n`; 0 when `n` is 0. The bias is below 2^-32 for `n` under 2^32.
    #[must_use]
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.0.next_u64() % n }
    }

    /// An independent source, for handing to a child.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::from_seed(self.bytes())
    }
}
