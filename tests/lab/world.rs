//! Machines and wires: namespaces, the internet bridge, NATs and firewalls.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One isolated internet with everything in it; torn down on drop.
pub struct Lab {
    inner: Rc<Inner>,
}

struct Inner {
    /// Short unique prefix of all namespace names.
    prefix: String,
    title: &'static str,
    dir: PathBuf,
    spaces: RefCell<Vec<String>>,
    logs: RefCell<Vec<(String, PathBuf)>>,
    next_wan: Cell<u8>,
    next_lan: Cell<u8>,
    born: Instant,
}

/// What kind of NAT a router does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// Keeps the source port where it can: endpoint-independent in effect.
    Easy,
    /// Another port for every destination.
    Hard,
}

/// A router with one outer address and a LAN of its own.
#[derive(Clone)]
pub struct Router {
    lab: Rc<Inner>,
    pub space: String,
    subnet: u8,
    next: Rc<Cell<u8>>,
}

/// A machine: a network namespace with its own `/etc`, `/run` and `/var/lib`.
#[derive(Clone)]
pub struct Host {
    lab: Rc<Inner>,
    pub name: String,
    pub space: String,
    /// Its address on the wire it is plugged into.
    pub addr: String,
    dir: PathBuf,
}

/// A running program; killed on drop.
pub struct Process {
    pub name: String,
    child: Child,
    pub log: PathBuf,
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?} failed: {}", String::from_utf8_lossy(&out.stderr));
}

fn ip(args: &[&str]) {
    run("ip", args);
}

fn nft(space: &str, script: &str) {
    let mut child = Command::new("ip")
        .args(["netns", "exec", space, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft starts");
    // A statement ends at a line's end or a semicolon, not at a brace.
    let script = script.replace(" }", "; }");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "nft in {space}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Calls `check` until it gives a value; fails with what it last said after `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match check() {
            Ok(value) => return value,
            Err(why) if start.elapsed() > limit => {
                panic!("{what}: not within {limit:?}; last: {why}")
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

impl Lab {
    /// An empty internet. `title` names the test in logs.
    pub fn new(title: &'static str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the lab needs root to make network namespaces: run scripts/test as root"
        );
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("t{}x{n}", std::process::id());
        let dir = std::env::temp_dir().join(format!("tsd-lab-{prefix}"));
        fs::create_dir_all(&dir).unwrap();
        let inner = Rc::new(Inner {
            prefix,
            title,
            dir,
            spaces: RefCell::default(),
            logs: RefCell::default(),
            next_wan: Cell::new(20),
            next_lan: Cell::new(1),
            born: Instant::now(),
        });
        let inet = inner.space("inet");
        ip(&["-n", &inet, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0"]);
        ip(&["-n", &inet, "link", "set", "br0", "up"]);
        Self { inner }
    }

    /// A machine right on the internet with an address of its own.
    pub fn host(&self, name: &str) -> Host {
        let last = self.inner.wan_octet();
        self.host_at(name, &format!("203.0.113.{last}"))
    }

    /// The same, with this address.
    pub fn host_at(&self, name: &str, addr: &str) -> Host {
        let space = self.inner.space(name);
        let inet = self.inner.name_of("inet");
        self.inner.wire(&inet, "br0", &space, addr, 24);
        Host::new(&self.inner, name, space, addr)
    }

    /// A router on the internet with a LAN behind it.
    pub fn router(&self, name: &str, nat: Nat) -> Router {
        let space = self.inner.space(name);
        let inet = self.inner.name_of("inet");
        let wan = format!("203.0.113.{}", self.inner.wan_octet());
        self.inner.wire(&inet, "br0", &space, &wan, 24);
        let subnet = self.inner.next_lan.get();
        self.inner.next_lan.set(subnet + 1);
        ip(&["-n", &space, "link", "add", "lan0", "type", "bridge", "stp_state", "0", "forward_delay", "0"]);
        ip(&["-n", &space, "addr", "add", &format!("192.168.{subnet}.1/24"), "dev", "lan0"]);
        ip(&["-n", &space, "link", "set", "lan0", "up"]);
        run("ip", &["netns", "exec", &space, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        let masquerade = match nat {
            Nat::Easy => "masquerade",
            Nat::Hard => "masquerade random,fully-random",
        };
        // Unsolicited input on the outer address is dropped, so that no conntrack entry of it is
        // confirmed: otherwise it would take the port away and turn an easy NAT into a hard one.
        nft(
            &space,
            &format!(
                "table ip lab {{
                   chain nat {{ type nat hook postrouting priority srcnat; oifname \"wan\" {masquerade} }}
                   chain input {{ type filter hook input priority filter; iifname \"wan\" ct state new drop }}
                   chain forward {{ type filter hook forward priority filter; iifname \"wan\" ct state new drop }}
                 }}"
            ),
        );
        Router { lab: self.inner.clone(), space, subnet, next: Rc::new(Cell::new(10)) }
    }
}

impl Inner {
    fn name_of(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn wan_octet(&self) -> u8 {
        let n = self.next_wan.get();
        self.next_wan.set(n + 1);
        n
    }

    fn space(&self, name: &str) -> String {
        let space = self.name_of(name);
        ip(&["netns", "add", &space]);
        ip(&["-n", &space, "link", "set", "lo", "up"]);
        // Duplicate address detection only delays tests.
        run("ip", &["netns", "exec", &space, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"]);
        self.spaces.borrow_mut().push(space.clone());
        space
    }

    /// Plugs `space` into a bridge by a veth pair named `wan` inside it.
    fn wire(&self, bridge_space: &str, bridge: &str, space: &str, addr: &str, len: u8) {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = format!("p{n}");
        ip(&[
            "-n",
            bridge_space,
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "wan",
            "netns",
            space,
        ]);
        ip(&["-n", bridge_space, "link", "set", &port, "master", bridge, "up"]);
        ip(&["-n", space, "addr", "add", &format!("{addr}/{len}"), "dev", "wan"]);
        ip(&["-n", space, "link", "set", "wan", "up"]);
    }
}

impl Router {
    /// A machine on the LAN.
    pub fn host(&self, name: &str) -> Host {
        let last = self.next.get();
        self.next.set(last + 1);
        let space = self.lab.space(name);
        let addr = format!("192.168.{}.{last}", self.subnet);
        self.lab.wire(&self.space, "lan0", &space, &addr, 24);
        ip(&["-n", &space, "route", "add", "default", "via", &format!("192.168.{}.1", self.subnet)]);
        Host::new(&self.lab, name, space, &addr)
    }

    /// Lets no UDP through, in either direction.
    pub fn block_udp(&self) {
        nft(
            &self.space,
            "table ip block { chain forward { type filter hook forward priority -10; meta l4proto udp drop } }",
        );
    }

    /// Lets UDP through again.
    pub fn unblock_udp(&self) {
        nft(&self.space, "delete table ip block");
    }
}

impl Host {
    fn new(lab: &Rc<Inner>, name: &str, space: String, addr: &str) -> Self {
        let dir = lab.dir.join(name);
        for part in ["run", "varlib"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        run("cp", &["-a", "/etc", dir.to_str().unwrap()]);
        let etc = dir.join("etc");
        for gone in ["tailscale", "default/tailscaled", "resolv.conf"] {
            let _ = fs::remove_file(etc.join(gone));
        }
        fs::write(etc.join("resolv.conf"), "nameserver 203.0.113.53\n").unwrap();
        fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n").unwrap();
        fs::write(etc.join("hostname"), format!("{name}\n")).unwrap();
        fs::write(etc.join("hosts"), "127.0.0.1 localhost\n").unwrap();
        Self { lab: lab.clone(), name: name.to_owned(), space, addr: addr.to_owned(), dir }
    }

    /// A path on the test's side of this machine's `/etc/…`, `/run/…` or `/var/lib/…`.
    pub fn path(&self, inside: &str) -> PathBuf {
        let map = [("/etc/", "etc"), ("/run/", "run"), ("/var/lib/", "varlib")];
        for (prefix, part) in map {
            if let Some(rest) = inside.strip_prefix(prefix) {
                return self.dir.join(part).join(rest);
            }
        }
        panic!("{inside} is not private to a lab host")
    }

    /// A command that runs on this machine.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space, "sh", "-c"]);
        // The machine's own files, its own host name, then the program in place of the shell.
        command.arg(
            "mount --bind \"$0/etc\" /etc && mount --bind \"$0/run\" /run && mount --bind \"$0/varlib\" /var/lib && \
             h=\"$1\"; shift; exec unshare --uts sh -c 'hostname \"$0\"; exec \"$@\"' \"$h\" \"$@\"",
        );
        command.arg(&self.dir).arg(&self.name).arg(program);
        for variable in ["TS_NO_LOGS_NO_SUPPORT", "SSL_CERT_FILE", "XDG_STATE_HOME"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program to its end, at most 60 s.
    pub fn output(&self, program: &str, args: &[&str]) -> Output {
        self.output_within(program, args, Duration::from_secs(60))
    }

    /// Runs a program to its end within `limit`.
    pub fn output_within(&self, program: &str, args: &[&str], limit: Duration) -> Output {
        let mut command = self.command("timeout");
        command.args(["-k", "1", &limit.as_secs().max(1).to_string(), program]).args(args);
        command.output().unwrap_or_else(|e| panic!("{program}: {e}"))
    }

    /// Runs a program that must succeed; gives its stdout.
    pub fn ok(&self, program: &str, args: &[&str]) -> String {
        let out = self.output(program, args);
        assert!(
            out.status.success(),
            "on {}: {program} {args:?}: {}\n{}{}",
            self.name,
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Starts a program that goes on; its output goes to a log that is printed when the test fails.
    pub fn spawn(&self, label: &str, mut command: Command) -> Process {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}/{label}", self.name);
        let log = self.lab.dir.join(format!("{}-{label}-{n}.log", self.name));
        let file = fs::File::create(&log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
        self.lab.logs.borrow_mut().push((name.clone(), log.clone()));
        Process { name, child, log }
    }

    /// Runs `work` on a thread inside this machine's network.
    pub fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let path = format!("/run/netns/{}", self.space);
        thread::spawn(move || {
            let file = fs::File::open(&path).unwrap();
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Lets no UDP in or out on the wire.
    pub fn block_udp(&self) {
        nft(
            &self.space,
            "table ip block { chain in { type filter hook input priority -10; iifname \"wan\" meta l4proto udp drop }
             chain out { type filter hook output priority -10; oifname \"wan\" meta l4proto udp drop } }",
        );
    }
}

impl Process {
    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.pid().cast_signed());
        let _ = nix::sys::signal::kill(pid, signal);
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> std::process::ExitStatus {
        let name = self.name.clone();
        eventually(&format!("{name} ends"), limit, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".into()),
            Err(e) => Err(e.to_string()),
        })
    }

    /// What it printed so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if thread::panicking() {
            for (name, log) in self.logs.borrow().iter() {
                let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines.len().saturating_sub(60);
                eprintln!(
                    "---- {}: {name} (last {} of {} lines)",
                    self.title,
                    lines.len() - tail,
                    lines.len()
                );
                for line in &lines[tail..] {
                    eprintln!("     {line}");
                }
            }
        } else {
            eprintln!("lab {}: {:.1} s", self.title, self.born.elapsed().as_secs_f64());
        }
        for space in self.spaces.borrow().iter() {
            let pids = Command::new("ip").args(["netns", "pids", space]).output();
            for pid in String::from_utf8_lossy(&pids.map(|o| o.stdout).unwrap_or_default()).split_whitespace()
            {
                if let Ok(pid) = pid.parse() {
                    let pid = nix::unistd::Pid::from_raw(pid);
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
            }
            let _ = Command::new("ip").args(["netns", "del", space]).output();
        }
        if std::env::var_os("TSD_LAB_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
