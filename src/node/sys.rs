//! The system calls no crate of ours wraps. The only place in the node where `unsafe` may stand.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Lets the kernel fragment and learn the path MTU again: quinn-udp asks for probing, under which a
/// datagram above the path MTU is lost instead of fragmented.
///
/// # Errors
/// When the kernel refuses the option.
pub(crate) fn allow_fragments(socket: &impl AsFd, v6: bool) -> io::Result<()> {
    let (level, name, value) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
    };
    let len = u32::try_from(size_of_val(&value)).unwrap_or(4);
    // SAFETY: the descriptor is borrowed for the whole call, and `value` is an int that outlives it,
    // with its own length.
    let rc =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
