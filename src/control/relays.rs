//! The relays that nodes are told: the server's own and those of the policy's `derpMap` above them
//! (SEMANTICS.md 10.1).

use crate::acl::ast::DerpOverlay;
use crate::keys::RegionId;
use crate::wire::DerpMap;

/// `own` with `policy` above it.
#[must_use]
pub(super) fn merged(own: &DerpMap, policy: &DerpOverlay) -> DerpMap {
    let mut map = own.clone();
    if policy.omit_default_regions {
        map.regions.clear();
    }
    for (id, region) in &policy.regions {
        match region {
            Some(region) => drop(map.regions.insert(RegionId(*id), region.clone())),
            None => drop(map.regions.remove(&RegionId(*id))),
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::DerpRegion;

    fn region(id: u64, code: &str) -> DerpRegion {
        DerpRegion { region_id: RegionId(id), region_code: code.into(), ..DerpRegion::default() }
    }

    fn codes(map: &DerpMap) -> String {
        map.regions.values().map(|r| r.region_code.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_policy_adds_replaces_and_removes_relays() {
        let own = DerpMap {
            regions: [(RegionId(900), region(900, "own")), (RegionId(901), region(901, "far"))].into(),
            ..DerpMap::default()
        };
        assert_eq!(merged(&own, &DerpOverlay::default()), own);
        let mut policy = DerpOverlay {
            regions: [(901, None), (900, Some(region(900, "new"))), (902, Some(region(902, "more")))].into(),
            ..DerpOverlay::default()
        };
        assert_eq!(codes(&merged(&own, &policy)), "new more");
        policy.omit_default_regions = true;
        policy.regions.remove(&900);
        assert_eq!(codes(&merged(&own, &policy)), "more");
    }
}
