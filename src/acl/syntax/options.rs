//! `derpMap` and the options of the whole tailnet (SEMANTICS.md 10.1).

use std::collections::BTreeSet;

use super::fields::{Fields, Shape, array, fields, flag, map, string};
use crate::acl::ast::{DerpOverlay, File, OneCgnatRoute};
use crate::acl::error::{Faults, did_you_mean, quote};
use crate::acl::hujson::{Kind, Member, Value};
use crate::keys::RegionId;
use crate::wire::{DerpNode, DerpRegion};

const DERP_MAP: Shape = Shape {
    what: "derpMap",
    known: &["OmitDefaultRegions", "Regions"],
    old: &[],
    comments: false,
    example: "such as { \"Regions\": { \"900\": { \"RegionID\": 900, \"RegionCode\": \"own\", \"Nodes\": [] } } }",
};
const REGION: Shape = Shape {
    what: "a region",
    known: &[
        "RegionID",
        "RegionCode",
        "RegionName",
        "Avoid",
        "NoMeasureNoHome",
        "Nodes",
        "Latitude",
        "Longitude",
    ],
    old: &[],
    comments: false,
    example: "such as { \"RegionID\": 900, \"RegionCode\": \"own\", \"RegionName\": \"Own\", \"Nodes\": [] }",
};
const NODE: Shape = Shape {
    what: "a relay",
    known: &[
        "Name",
        "RegionID",
        "HostName",
        "CertName",
        "IPv4",
        "IPv6",
        "STUNPort",
        "STUNOnly",
        "DERPPort",
        "InsecureForTests",
        "STUNTestIP",
        "CanPort80",
    ],
    old: &[],
    comments: false,
    example: "such as { \"Name\": \"900a\", \"RegionID\": 900, \"HostName\": \"relay.example.com\" }",
};

pub(super) fn read(found: &Fields<'_, '_>, file: &mut File, faults: &mut Faults) {
    file.disable_ipv4 = flag(found.get("disableIPv4"), "disableIPv4", faults);
    file.randomize_client_port = flag(found.get("randomizeClientPort"), "randomizeClientPort", faults);
    if let Some(value) = found.get("OneCGNATRoute") {
        file.one_cgnat_route = one_cgnat_route(value, faults);
    }
    if let Some(value) = found.get("derpMap") {
        file.derp_map = derp_map(value, faults);
    }
}

fn one_cgnat_route(value: &Value<'_>, faults: &mut Faults) -> OneCgnatRoute {
    match string(value, "OneCGNATRoute", faults) {
        Some("mac-always") => OneCgnatRoute::MacAlways,
        Some("mac-never") => OneCgnatRoute::MacNever,
        Some("") | None => OneCgnatRoute::Default,
        Some(other) => {
            let near = faults.suggest(other, ["mac-always", "mac-never"]);
            let hint = did_you_mean(near, "write \"mac-always\", \"mac-never\" or \"\"");
            faults.add("option", value.span, format!("OneCGNATRoute={} is not known", quote(other)), hint);
            OneCgnatRoute::Default
        }
    }
}

fn derp_map(value: &Value<'_>, faults: &mut Faults) -> DerpOverlay {
    let mut out = DerpOverlay::default();
    let Some(found) = fields(value, &DERP_MAP, faults) else {
        return out;
    };
    out.omit_default_regions = flag(found.get("OmitDefaultRegions"), "OmitDefaultRegions", faults);
    let mut names = BTreeSet::new();
    for member in found.get("Regions").map_or(&[][..], |v| map(v, "Regions", faults)) {
        // A region number travels as a Go int and is shown to people: 32 bits are plenty.
        let number = member.name.parse::<u32>().ok().filter(|n| *n > 0 && n.to_string() == member.name);
        let Some(number) = number.map(u64::from) else {
            faults.add(
                "region",
                member.name_span,
                format!("Regions[{}]: not a region's number", quote(&member.name)),
                "own regions have the numbers 900 to 999",
            );
            continue;
        };
        let region = if member.value.is_null() { None } else { region(number, member, &mut names, faults) };
        out.regions.insert(number, region);
    }
    out
}

fn region(
    number: u64,
    member: &Member<'_>,
    names: &mut BTreeSet<String>,
    faults: &mut Faults,
) -> Option<DerpRegion> {
    let found = fields(&member.value, &REGION, faults)?;
    same_number(&found, number, faults);
    let mut region = DerpRegion {
        region_id: RegionId(number),
        region_code: text(&found, "RegionCode", faults),
        region_name: text(&found, "RegionName", faults),
        avoid: flag(found.get("Avoid"), "Avoid", faults),
        no_measure_no_home: flag(found.get("NoMeasureNoHome"), "NoMeasureNoHome", faults),
        ..DerpRegion::default()
    };
    for item in found.get("Nodes").and_then(|v| array(v, "Nodes", faults)).unwrap_or_default() {
        let Some(node) = node(item, number, faults) else {
            continue;
        };
        if !names.insert(node.name.clone()) {
            faults.add(
                "relay",
                item.span,
                format!("the relay name {} stands twice", quote(&node.name)),
                "give every relay a name of its own, such as 900a and 900b",
            );
        }
        region.nodes.push(node);
    }
    Some(region)
}

fn node(value: &Value<'_>, number: u64, faults: &mut Faults) -> Option<DerpNode> {
    let found = fields(value, &NODE, faults)?;
    same_number(&found, number, faults);
    let node = DerpNode {
        name: text(&found, "Name", faults),
        region_id: RegionId(number),
        host_name: text(&found, "HostName", faults),
        cert_name: text(&found, "CertName", faults),
        ipv4: address::<std::net::Ipv4Addr>(&found, "IPv4", faults),
        ipv6: address::<std::net::Ipv6Addr>(&found, "IPv6", faults),
        stun_port: integer(&found, "STUNPort", -1, faults),
        stun_only: flag(found.get("STUNOnly"), "STUNOnly", faults),
        derp_port: u16::try_from(integer(&found, "DERPPort", 0, faults)).unwrap_or(0),
        insecure_for_tests: flag(found.get("InsecureForTests"), "InsecureForTests", faults),
        stun_test_ip: text(&found, "STUNTestIP", faults),
        can_port80: flag(found.get("CanPort80"), "CanPort80", faults),
    };
    if node.name.is_empty() || node.host_name.is_empty() {
        faults.add("relay", value.span, "a relay needs Name and HostName", NODE.example);
    }
    Some(node)
}

/// `RegionID` may be left out; written, it is the region's.
fn same_number(found: &Fields<'_, '_>, number: u64, faults: &mut Faults) {
    let Some(value) = found.get("RegionID") else {
        return;
    };
    if !matches!(value.kind, Kind::Number(n) if n.parse() == Ok(number)) {
        faults.add(
            "region",
            value.span,
            format!("RegionID is not {number}, the number of the region it stands in"),
            format!("write {number}, or leave it out"),
        );
    }
}

fn text(found: &Fields<'_, '_>, name: &str, faults: &mut Faults) -> String {
    found.get(name).and_then(|v| string(v, name, faults)).unwrap_or_default().to_owned()
}

/// An address as text, or `none`.
fn address<T: std::str::FromStr>(found: &Fields<'_, '_>, name: &str, faults: &mut Faults) -> String {
    let Some(value) = found.get(name) else {
        return String::new();
    };
    let text = string(value, name, faults).unwrap_or_default();
    if !text.is_empty() && text != "none" && text.parse::<T>().is_err() {
        let message = format!("{name}={} is no {name} address", quote(text));
        faults.add("relay", value.span, message, "write an address, \"none\", or leave it out to look it up");
    }
    text.to_owned()
}

/// A port; `least` is 0, or -1 where that means none.
fn integer(found: &Fields<'_, '_>, name: &str, least: i32, faults: &mut Faults) -> i32 {
    let Some(value) = found.get(name) else {
        return 0;
    };
    let number = match value.kind {
        Kind::Number(text) => text.parse::<i32>().ok().filter(|n| (least..=65535).contains(n)),
        _ => None,
    };
    number.unwrap_or_else(|| {
        faults.add("relay", value.span, format!("{name} is no port"), "write a number up to 65535");
        0
    })
}
