//! Names of the tailnet: labels, and the answers MagicDNS gives at 100.100.100.100. Used by server and
//! node alike; pure.

mod names;
mod zone;

pub use names::{sanitize_label, unique_label};
pub use zone::{Verdict, Zone, question};
