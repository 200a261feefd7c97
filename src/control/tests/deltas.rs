//! Property: whatever happens, the first message and all deltas after it lead to the same picture as a
//! first message now. The reader is written as control.md 6.4 and 7.1 describe a client.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::change::Change;
use super::super::mapper::{self, Delta};
use super::super::register::{Newcomer, admit};
use super::super::state::{Draft, Tailnet};
use super::super::{admin, policy};
use crate::acl::Policy;
use crate::clock::{Now, Rng};
use crate::keys::{DiscoPublic, MachinePublic, NodeId, UserId};
use crate::model::rows::Stored;
use crate::model::{Owner, PolicyVersion, Role, User};
use crate::wire::{CapVer, DerpMap, FilterRule, Hostinfo, MapResponse, Node, SshRule};

/// What a client knows.
#[derive(Debug, Default, PartialEq)]
struct Picture {
    me: Option<Node>,
    peers: BTreeMap<NodeId, Node>,
    filter: Vec<FilterRule>,
    users: BTreeMap<UserId, String>,
    ssh: Vec<SshRule>,
    derp: Option<DerpMap>,
}

impl Picture {
    fn read(&mut self, m: MapResponse) {
        for node in m.peers.into_iter().chain(m.peers_changed).flatten() {
            self.peers.insert(node.id, node);
        }
        for id in m.peers_removed.into_iter().flatten() {
            self.peers.remove(&id);
        }
        for patch in m.peers_changed_patch.into_iter().flatten() {
            let peer = self.peers.get_mut(&patch.node_id).expect("only known peers are patched");
            if patch.derp_region.0 != 0 {
                peer.home_derp = patch.derp_region;
            }
            if !patch.endpoints.is_empty() {
                peer.endpoints = patch.endpoints;
            }
            peer.key = patch.key.unwrap_or(peer.key);
            peer.disco_key = patch.disco_key.unwrap_or(peer.disco_key);
            peer.online = patch.online.or(peer.online);
            peer.last_seen = patch.last_seen.or(peer.last_seen);
            peer.key_expiry = patch.key_expiry.unwrap_or(peer.key_expiry);
        }
        self.me = m.node.or(self.me.take());
        self.derp = m.derp_map.or(self.derp.take());
        self.ssh = m.ssh_policy.map_or(std::mem::take(&mut self.ssh), |p| p.rules);
        for (name, rules) in m.packet_filters.into_iter().flatten() {
            match name.as_str() {
                "*" => self.filter.clear(),
                _ => self.filter = rules.unwrap_or_default(),
            }
        }
        for profile in m.user_profiles {
            self.users.insert(profile.id, profile.login_name);
        }
        for peer in self.peers.values() {
            assert!(self.users.contains_key(&peer.user), "a profile comes no later than its peer");
        }
    }

    /// Without what clients do not look at: when an online peer was last seen, what the node itself
    /// reported, and profiles of users who are no longer around.
    fn plain(mut self) -> Self {
        let mut used: Vec<UserId> = self.peers.values().map(|p| p.user).collect();
        for peer in self.peers.values_mut() {
            if peer.online == Some(true) {
                peer.last_seen = None;
            }
        }
        if let Some(me) = &mut self.me {
            used.push(me.user);
            me.endpoints.clear();
            me.home_derp = Default::default();
            me.disco_key = Default::default();
            me.hostinfo = None;
            me.cap = Default::default();
        }
        self.users.retain(|id, _| used.contains(id));
        self
    }
}

const POLICIES: [&str; 8] = [
    r#"{"acls": []}"#,
    r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#,
    r#"{"acls": [{"action": "accept", "src": ["u1@"], "dst": ["u2@:22"]}]}"#,
    r#"{"tagOwners": {"tag:t": ["u1@"]}, "acls": [{"action": "accept", "src": ["tag:t"], "dst": ["*:80"]}]}"#,
    r#"{"nodeAttrs": [{"target": ["u1@"], "attr": ["disable-ipv4"]}, {"target": ["*"], "attr": ["suggest-exit-node"]}],
        "derpMap": {"Regions": {"900": null}}}"#,
    r#"{"acls": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["autogroup:member:22"]}],
        "nodeAttrs": [{"target": ["autogroup:admin"], "attr": ["disable-ipv4", "suggest-exit-node"]}],
        "ssh": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["autogroup:member"], "users": ["root"]}]}"#,
    r#"{"tagOwners": {"tag:t": ["u1@"]}, "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:t", "u2@"]}, "exitNode": ["u1@"]},
        "grants": [{"src": ["*"], "dst": ["10.0.0.0/8"], "ip": ["*"], "via": ["tag:t"]}, {"src": ["u1@"], "dst": ["*"], "ip": ["*"]}]}"#,
    r#"{"tagOwners": {"tag:t": ["u1@"]}, "grants": [{"src": ["u1@"], "dst": ["autogroup:self"], "ip": ["*"]}],
        "ssh": [{"action": "check", "src": ["u1@"], "dst": ["tag:t"], "users": ["root"]}]}"#,
];

fn act(draft: &mut Draft, what: u8, node: u8, arg: u8) {
    let ids: Vec<NodeId> = draft.net.nodes.keys().copied().collect();
    let id = ids[node as usize % ids.len()];
    let mut record = (*draft.net.nodes[&id]).clone();
    let name = id.to_string();
    match what {
        0 => newcomer(draft, arg),
        1 if id != NodeId(1) => {
            draft.delete_node(id);
        }
        2 => draft.set_online(id, arg.is_multiple_of(2)),
        3 => {
            record.endpoints = (0..arg % 3).map(|p| ([192, 0, 2, arg], u16::from(p) + 1).into()).collect();
            draft.lag_node(record);
        }
        4 => {
            record.home_derp = (!arg.is_multiple_of(3)).then_some(crate::keys::RegionId(u64::from(arg)));
            draft.put_node(record);
        }
        5 => {
            record.disco = (!arg.is_multiple_of(4)).then_some(DiscoPublic::from_bytes([arg; 32]));
            draft.put_node(record);
        }
        6 => {
            let _ = admin::rename_node(draft, &name, &format!("x{arg}"));
        }
        7 => {
            let _ = admin::expire_node(draft, &name);
        }
        8 => {
            record.expiry = None;
            draft.put_node(record);
        }
        9 => {
            let text = POLICIES[arg as usize % POLICIES.len()];
            let author = policy::Author { from: None, server: Vec::new() };
            let parsed = Policy::parse(text).unwrap();
            let refuse = policy::Refuse::Everything;
            let prepared = policy::prepare(&draft.net, &author, text.into(), parsed, refuse).unwrap();
            let stored = policy::Stored { by: "t", comment: "", confirmed: true, expect: None, stale: true };
            policy::set(draft, prepared, stored).unwrap().expect("it is put in force");
        }
        10 => {
            let tags = [crate::model::Tag::parse("tag:t").unwrap()];
            let _ = admin::tag_node(draft, &name, &tags[..usize::from(arg % 2)]);
        }
        11 => {
            record.hostinfo.routable_ips =
                vec!["10.0.0.0/8".parse().unwrap(), "0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
            draft.put_node(record);
            let _ = admin::approve_routes(draft, &name, (arg.is_multiple_of(2)).then_some(&[]));
        }
        12 => {
            let _ = admin::rename_user(draft, "1", &format!("r{arg}"));
        }
        13 => {
            let role = Role::ALL[usize::from(arg) % Role::ALL.len()];
            let _ = admin::set_role(draft, &(u64::from(node % 2) + 1).to_string(), role);
        }
        _ => {
            let mut settings = (*draft.net.settings).clone();
            settings.base_domain = format!("d{}.example", arg % 3);
            draft.net.settings = std::sync::Arc::new(settings);
            draft.change.settings = true;
        }
    }
}

pub(super) fn newcomer(draft: &mut Draft, arg: u8) {
    let key = draft.rng.bytes();
    let user = UserId(u64::from(arg % 2) + 1);
    let new = Newcomer {
        machine: MachinePublic::from_bytes(draft.rng.bytes()),
        key: crate::keys::NodePublic::from_bytes(key),
        hostinfo: Hostinfo { hostname: format!("h{arg}"), ..Hostinfo::default() },
        capver: CapVer(130),
        ephemeral: false,
        owner: Owner::User(user),
        made_by: user,
        auth_key: None,
        expiry: None,
    };
    let mut node = (*admit(draft, new).unwrap()).clone();
    node.disco = Some(DiscoPublic::from_bytes(key));
    draft.put_node(node);
}

/// The change with as little touched as may be said: nodes that changed, and whoever's own rules really
/// differ. What comes out of it must be enough.
fn least(before: &Tailnet, draft: &Draft) -> Change {
    let (mut change, after) = (draft.change.clone(), &draft.net);
    if change.settings || before.policy_version != after.policy_version {
        return change;
    }
    change.access.all = false;
    change.access.filters = after
        .nodes
        .keys()
        .copied()
        .filter(|id| {
            let own = |net: &Tailnet| {
                let c = &net.compiled;
                (c.filter_rules(*id), c.client_ssh_rules(*id), c.self_caps(*id))
            };
            own(before) != own(after)
        })
        .collect();
    change
}

pub(super) fn beginning(now: Now) -> Tailnet {
    let role = |id| if id == 1 { Role::Owner } else { Role::Member };
    let user = |id: u64| User { id: UserId(id), name: format!("u{id}"), role: role(id), created: now.wall };
    let stored = Stored { users: vec![user(1), user(2)], last_user: 2, ..Stored::default() };
    let version = PolicyVersion {
        version: 0,
        text: String::new(),
        author: String::new(),
        comment: String::new(),
        created: now.wall,
    };
    let net = Tailnet::new(stored, Policy::hosted_default(), version, super::settings(), now);
    let mut draft = Draft::new(net, now, Rng::from_seed([1; 32]));
    newcomer(&mut draft, 0);
    newcomer(&mut draft, 1);
    draft.finish();
    draft.net
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn full_then_deltas_equals_full(
        steps in proptest::collection::vec(proptest::collection::vec((0_u8..15, any::<u8>(), any::<u8>()), 1..4), 1..12),
        slow in proptest::collection::vec(any::<bool>(), 12),
    ) {
        let mut now = Now::read();
        let mut net = beginning(now);
        let me = NodeId(1);
        let (first, mut sent) = mapper::full(&net, me, now.wall).unwrap();
        let mut picture = Picture::default();
        picture.read(first);
        let mut slot = Change::default();
        let last = steps.len() - 1;
        for (i, round) in steps.iter().enumerate() {
            now = now.after(std::time::Duration::from_secs(60));
            let mut draft = Draft::new(net.clone(), now, Rng::from_seed([i as u8 + 2; 32]));
            for (what, node, arg) in round {
                act(&mut draft, *what, *node, *arg);
            }
            draft.finish();
            let change = least(&net, &draft);
            if mapper::concerns(me, &net, &draft.net, &change) {
                slot.merge(&change);
            }
            net = draft.net;
            let fresh = net.policy.compile(&net.world());
            for id in net.nodes.keys() {
                prop_assert_eq!(net.compiled.filter_rules(*id), fresh.filter_rules(*id));
                prop_assert_eq!(net.compiled.self_caps(*id), fresh.self_caps(*id));
            }
            // A slow reader gets several rounds as one.
            if slow.get(i) == Some(&true) && i != last {
                continue;
            }
            match mapper::delta(&mut sent, &net, &std::mem::take(&mut slot), now.wall) {
                Delta::Nothing => {}
                Delta::Message(m) => picture.read(*m),
                Delta::Last(_) => panic!("node 1 stays"),
            }
        }
        let mut whole = Picture::default();
        whole.read(mapper::full(&net, me, now.wall).unwrap().0);
        prop_assert_eq!(picture.plain(), whole.plain());
    }
}
