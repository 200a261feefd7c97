//! The engine on a simulated network; one file per side of it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::clock::Rng;
use crate::keys::DiscoPublic;
use crate::node::packet::tests::{echo, tcp, udp};
use crate::node::packet::{Headers, Proto, build_ip};
use crate::stun::message;
use crate::wire::{
    CapVer, DerpMap, DerpNode, DerpRegion, DnsConfig, FilterRule, NetPortRange, PeerChange, PortRange,
};

mod netmaps;
mod paths;
mod services;
mod sim;
mod strangers;

use self::sim::*;
