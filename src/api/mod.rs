//! The admin API over the unix socket: JSON over HTTP, the same functions and checks as the console.
//! The socket lies in the state directory (0700) with mode 0600, and the caller's uid is checked on
//! top: who may open it is the admin.

pub mod error;
pub mod server;
pub mod types;

/// The socket's name in the state directory.
pub const SOCKET_NAME: &str = "admin.sock";

/// Checks a policy text without a server: its language, not its effect.
///
/// # Errors
/// All faults.
pub fn check_offline(text: &str) -> Result<(), Vec<types::Fault>> {
    match crate::acl::Policy::parse(text) {
        Ok(_) => Ok(()),
        Err(faults) => Err(faults.into_iter().map(types::Fault::from).collect()),
    }
}
