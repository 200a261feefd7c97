//! One captured case as the engine wants it: the archive it comes from, its world, and the facts that all
//! cases share (`fixtures.json`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use ipnet::IpNet;
use serde_json::Value;
use tsd::acl::{World, WorldNode, WorldUser};
use tsd::keys::{NodeId, UserId};
use tsd::model::{Owner, Role, Tag, Tags};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

/// Users, roles, domains and lists of capabilities that do not count.
pub(crate) static FIXTURES: LazyLock<Value> = LazyLock::new(|| {
    let text = std::fs::read_to_string(directory().join("fixtures.json")).unwrap();
    serde_json::from_str(&text).unwrap()
});

/// All cases of a family: a line of JSON each, compressed.
pub(crate) fn family(name: &str) -> Vec<Case> {
    let packed = std::fs::File::open(directory().join(format!("cases/{name}.jsonl.zst"))).unwrap();
    let text = String::from_utf8(zstd::decode_all(packed).unwrap()).unwrap();
    text.lines().map(|line| Case::new(serde_json::from_str(line).unwrap())).collect()
}

/// The strings of a list; null is an empty one.
pub(crate) fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// The networks of a list; null is an empty one.
pub(crate) fn nets(value: &Value) -> BTreeSet<IpNet> {
    texts(value).iter().map(|t| t.parse().unwrap()).collect()
}

/// A case with the world it was captured in.
pub(crate) struct Case {
    pub(crate) json: Value,
    pub(crate) world: World,
    pub(crate) ids: BTreeMap<String, NodeId>,
}

impl Case {
    fn new(json: Value) -> Self {
        let mut world = World {
            domains: texts(&FIXTURES["tailnet_domains"]).into_iter().collect(),
            auto_update: json["input"]["tailnet"]["settings"]["devices_auto_updates_on"] == true,
            ..World::default()
        };
        let mut users = BTreeMap::new();
        for user in FIXTURES["users"].as_array().unwrap() {
            let id = UserId(user["id"].as_u64().unwrap());
            let role: Role = serde_json::from_value(user["role"].clone()).unwrap();
            let name = user["email"].as_str().unwrap().to_owned();
            users.insert(user["name"].as_str().unwrap(), id);
            world.users.insert(id, WorldUser { id, name, role });
        }
        let mut ids = BTreeMap::new();
        for (number, (name, node)) in (1..).zip(json["topology"]["nodes"].as_object().unwrap()) {
            let tags = Tags::new(texts(&node["tags"]).iter().map(|t| Tag::parse(t).unwrap()));
            let owner = tags.map_or_else(|| Owner::User(users[node["user"].as_str().unwrap()]), Owner::Tags);
            let (offered, approved) = (nets(&node["routable_ips"]), nets(&node["approved_routes"]));
            let id = NodeId(number);
            ids.insert(name.clone(), id);
            let node = WorldNode {
                id,
                name: name.clone(),
                owner,
                ipv4: node["ipv4"].as_str().unwrap().parse().unwrap(),
                ipv6: node["ipv6"].as_str().unwrap().parse().unwrap(),
                served_routes: offered.intersection(&approved).copied().collect(),
                attributes: BTreeMap::new(),
            };
            world.nodes.insert(id, node);
        }
        Self { json, world, ids }
    }

    pub(crate) fn id(&self) -> &str {
        self.json["id"].as_str().unwrap()
    }

    pub(crate) fn policy(&self) -> &str {
        self.json["input"]["full_policy"].as_str().unwrap()
    }

    /// What each captured node was given, by its name.
    pub(crate) fn captures(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.json["captures"].as_object().unwrap().iter().map(|(name, value)| (name.as_str(), value))
    }
}
