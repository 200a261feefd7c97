use super::*;
use crate::clock::{Now, Rng};
use crate::node::engine::Output;
use crate::node::outbox::Outbox;
use crate::wire::{DerpNode, DerpRegion};

struct Rig {
    check: Netcheck,
    now: Now,
    rng: Rng,
    out: Outbox,
}

fn map(regions: u64) -> DerpMap {
    let region = |id: u64| DerpRegion {
        region_id: RegionId(id),
        nodes: vec![DerpNode {
            name: format!("{id}a"),
            host_name: format!("r{id}.example"),
            ipv4: format!("203.0.113.{id}"),
            ..DerpNode::default()
        }],
        ..DerpRegion::default()
    };
    DerpMap { regions: (1..=regions).map(|id| (RegionId(id), region(id))).collect(), ..DerpMap::default() }
}

impl Rig {
    fn new(derp: &DerpMap) -> Self {
        let mut check = Netcheck::new(0);
        check.set_interfaces(vec!["192.168.1.2".parse().unwrap()], Some(41641), None);
        check.set_map(derp);
        Self { check, now: Now::read(), rng: Rng::from_seed([5; 32]), out: Outbox::default() }
    }

    fn with<T>(&mut self, f: impl FnOnce(&mut Netcheck, &mut Ctx<'_>) -> T) -> T {
        let mut ctx = Ctx { now: self.now, rng: &mut self.rng, out: &mut self.out };
        f(&mut self.check, &mut ctx)
    }

    fn probes(&mut self) -> Vec<(SocketAddr, [u8; 12])> {
        let mut all = Vec::new();
        while let Some(output) = self.out.pop() {
            if let Output::Udp { to, bytes } = output {
                all.push((to, message::parse_request(&bytes).unwrap()));
            }
        }
        all
    }

    fn wait(&mut self, ms: u64) -> Option<Finished> {
        self.now = self.now.after(Duration::from_millis(ms));
        self.with(Netcheck::handle_timeout)
    }

    fn answer(&mut self, probe: (SocketAddr, [u8; 12]), seen: &str) -> bool {
        let bytes = message::response(probe.1, seen.parse().unwrap());
        self.check.handle_stun(probe.0, &bytes, self.now.mono)
    }
}

#[test]
fn it_is_done_as_soon_as_all_regions_answered() {
    let mut rig = Rig::new(&map(2));
    rig.with(|c, ctx| c.start(true, ctx));
    let probes = rig.probes();
    assert_eq!(probes.len(), 2);
    assert!(rig.wait(10).is_none());
    assert!(rig.answer(probes[0], "198.51.100.1:7"));
    assert!(rig.wait(10).is_none());
    assert!(rig.answer(probes[1], "198.51.100.1:7"));
    let done = rig.wait(0).unwrap();
    assert_eq!(done.report.varies, Some(false));
    assert_eq!(rig.check.choose_home(false, rig.now.mono), Some(RegionId(1)));
    let kinds: Vec<EndpointType> = done.endpoints.iter().map(|e| e.1).collect();
    assert_eq!(kinds, [EndpointType::STUN, EndpointType::LOCAL]);
    // Answers come once.
    assert!(!rig.answer(probes[1], "198.51.100.1:7"));
}

#[test]
fn a_hard_nat_is_seen_and_the_local_port_guessed() {
    let mut rig = Rig::new(&map(2));
    rig.with(|c, ctx| c.start(true, ctx));
    let probes = rig.probes();
    rig.answer(probes[0], "198.51.100.1:7");
    rig.answer(probes[1], "198.51.100.1:8");
    let done = rig.wait(0).unwrap();
    assert_eq!(done.report.varies, Some(true));
    let guess = ("198.51.100.1:41641".parse().unwrap(), EndpointType::STUN4_LOCAL_PORT);
    assert!(done.endpoints.contains(&guess));
}

#[test]
fn an_answer_from_elsewhere_counts_nothing() {
    let mut rig = Rig::new(&map(1));
    rig.with(|c, ctx| c.start(true, ctx));
    let (_, tx) = rig.probes()[0];
    assert!(!rig.answer(("192.0.2.1:3478".parse().unwrap(), tx), "198.51.100.1:7"));
}

#[test]
fn probes_are_repeated_and_without_answers_https_is_asked_after_a_second() {
    let mut rig = Rig::new(&map(2));
    rig.with(|c, ctx| c.start(true, ctx));
    assert_eq!(rig.probes().len(), 2);
    rig.wait(100);
    rig.wait(100);
    assert_eq!(rig.probes().len(), 4);
    assert!(rig.wait(800).is_none());
    let asked = EngineEvent::NeedHttpsLatency(vec![RegionId(1), RegionId(2)]);
    assert_eq!(rig.out.pop(), Some(Output::Event(asked)));
    rig.check.note_https(RegionId(2), Duration::from_millis(30));
    assert!(rig.wait(50).is_none());
    rig.check.note_https(RegionId(1), Duration::from_millis(90));
    let done = rig.wait(0).unwrap();
    assert!(!done.report.udp);
    assert_eq!(rig.check.choose_home(false, rig.now.mono), Some(RegionId(2)));
}

#[test]
fn when_nothing_answers_a_home_is_picked_and_kept() {
    let mut rig = Rig::new(&map(3));
    rig.with(|c, ctx| c.start(true, ctx));
    rig.wait(1000);
    assert!(rig.wait(4000).is_some());
    assert_eq!(rig.check.choose_home(false, rig.now.mono), Some(RegionId(1)));
}

#[test]
fn the_home_stays_while_control_is_down_and_a_later_check_is_smaller() {
    let mut rig = Rig::new(&map(6));
    let measure = |rig: &mut Rig, force: bool, order: fn(u64) -> u64| {
        rig.with(|c, ctx| c.start(force, ctx));
        let mut probes = rig.probes();
        probes.sort_by_key(|(to, _)| match to.ip() {
            IpAddr::V4(a) => order(u64::from(a.octets()[3])),
            IpAddr::V6(_) => 0,
        });
        for p in &probes {
            rig.now = rig.now.after(Duration::from_millis(20));
            rig.answer(*p, "198.51.100.1:7");
        }
        rig.wait(0).unwrap();
        probes.len()
    };
    assert_eq!(measure(&mut rig, true, |n| n), 6);
    assert_eq!(rig.check.choose_home(true, rig.now.mono), Some(RegionId(1)));
    rig.now = rig.now.after(Duration::from_secs(20));
    assert_eq!(measure(&mut rig, false, |n| n), 3);
    rig.now = rig.now.after(Duration::from_secs(400));
    assert_eq!(measure(&mut rig, true, |n| 10 - n), 6);
    assert_eq!(rig.check.choose_home(false, rig.now.mono), Some(RegionId(1)));
    assert_eq!(rig.check.choose_home(true, rig.now.mono), Some(RegionId(6)));
}

#[test]
fn stun_ports_test_addresses_and_unmeasured_regions_are_heeded() {
    let mut derp = map(3);
    let node = |derp: &mut DerpMap, id, f: fn(&mut DerpNode)| {
        f(&mut derp.regions.get_mut(&RegionId(id)).unwrap().nodes[0]);
    };
    node(&mut derp, 1, |n| n.stun_port = -1);
    node(&mut derp, 2, |n| {
        n.stun_test_ip = "192.0.2.9".to_owned();
        n.stun_port = 99;
    });
    derp.regions.get_mut(&RegionId(3)).unwrap().no_measure_no_home = true;
    let mut rig = Rig::new(&derp);
    rig.with(|c, ctx| c.start(true, ctx));
    let to: Vec<String> = rig.probes().iter().map(|p| p.0.to_string()).collect();
    assert_eq!(to, ["192.0.2.9:99"]);
}

#[test]
fn names_wait_for_their_addresses() {
    let mut derp = map(1);
    derp.regions.get_mut(&RegionId(1)).unwrap().nodes[0].ipv4.clear();
    let mut rig = Rig::new(&derp);
    rig.with(|c, ctx| c.start(true, ctx));
    assert!(rig.probes().is_empty());
    let addrs = BTreeMap::from([("1a".to_owned(), vec!["192.0.2.5".parse().unwrap()])]);
    assert!(rig.check.set_resolved(addrs.clone()));
    assert!(!rig.check.set_resolved(addrs));
    rig.with(|c, ctx| c.start(true, ctx));
    assert_eq!(rig.probes()[0].0, "192.0.2.5:3478".parse().unwrap());
}
