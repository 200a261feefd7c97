//! Options of the whole network: relays (`derpMap`) and `OneCGNATRoute`. Those that are attributes of
//! every device (`disableIPv4`, `randomizeClientPort`) are found with the attributes.

use std::collections::BTreeSet;

use super::super::ast::{DerpOverlay, OneCgnatRoute};
use super::others::{Effect, OtherKind, Others, Told, clipped, join};
use crate::wire::DerpRegion;

/// Relay regions in words; the policy does not know which regions the server has of its own.
#[derive(Clone, Copy, PartialEq)]
enum Region<'a> {
    /// As the server is configured.
    Own,
    /// Taken away by name.
    Gone,
    /// Written in the policy.
    Written(&'a DerpRegion),
}

fn region(map: &DerpOverlay, id: u64) -> Region<'_> {
    match map.regions.get(&id) {
        Some(Some(region)) => Region::Written(region),
        Some(None) => Region::Gone,
        None => Region::Own,
    }
}

pub(super) fn find(all: &mut Others<'_>) {
    let (old, new) = (&all.old.file, &all.new.file);
    relays(all, &old.derp_map, &new.derp_map);
    if old.one_cgnat_route != new.one_cgnat_route {
        let words = |route| match route {
            OneCgnatRoute::Default => "as the clients choose",
            OneCgnatRoute::MacAlways => "always on macOS (mac-always)",
            OneCgnatRoute::MacNever => "never on macOS (mac-never)",
        };
        let what = format!(
            "one route for 100.64.0.0/10 {} instead of {} (OneCGNATRoute)",
            words(new.one_cgnat_route),
            words(old.one_cgnat_route)
        );
        all.network(Told::new(OtherKind::Option, Effect::Changed, what));
    }
}

/// Relays that come, go or change. Any two devices may be brought together by any relay, so each that
/// goes is to be confirmed.
fn relays(all: &mut Others<'_>, old: &DerpOverlay, new: &DerpOverlay) {
    let omitted = old.omit_default_regions || new.omit_default_regions;
    match (old.omit_default_regions, new.omit_default_regions) {
        (false, true) => {
            let what = "the relays of this server (OmitDefaultRegions)";
            all.network(Told::new(OtherKind::Relay, Effect::Lost, what).taking(true));
        }
        (true, false) => {
            let what = "the relays of this server (no OmitDefaultRegions any more)";
            all.network(Told::new(OtherKind::Relay, Effect::Gained, what));
        }
        _ => {}
    }
    let ids: BTreeSet<u64> = old.regions.keys().chain(new.regions.keys()).copied().collect();
    for id in ids {
        let told = |effect, text: String| Told::new(OtherKind::Relay, effect, text);
        let row = match (region(old, id), region(new, id)) {
            (a, b) if a == b => continue,
            (Region::Written(a), Region::Written(b)) => {
                let less = hosts(a).iter().any(|host| !hosts(b).contains(host));
                let what = format!("relay region {}, before {}", named(id, b), named(id, a));
                told(Effect::Changed, what).taking(less)
            }
            (_, Region::Written(region)) => {
                told(Effect::Gained, format!("relay region {}", named(id, region)))
            }
            (Region::Written(region), _) => {
                told(Effect::Lost, format!("relay region {}", named(id, region))).taking(true)
            }
            // What is omitted with all others was told above.
            _ if omitted => continue,
            (_, Region::Gone) => told(Effect::Lost, format!("relay region {id} of this server")).taking(true),
            (_, Region::Own) => told(Effect::Gained, format!("relay region {id} of this server")),
        };
        all.network(row);
    }
}

fn hosts(region: &DerpRegion) -> BTreeSet<&str> {
    region.nodes.iter().map(|n| n.host_name.as_str()).collect()
}

/// `901 far (relay.example.com)`.
fn named(id: u64, region: &DerpRegion) -> String {
    let hosts = join(hosts(region).into_iter().map(str::to_owned).collect(), "and");
    let hosts = if hosts.is_empty() { "no relay".to_owned() } else { hosts };
    clipped(&format!("{id} {} ({hosts})", region.region_code))
}
