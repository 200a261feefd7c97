//! Every command but `up`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::client::{CallError, Client};
use super::text::{self, print, say};
use super::{Failure, IpArgs, PingArgs, RunArgs, StatusArgs, yours};
use crate::node::host::VERSION;
use crate::node::run::{NodeConfig, run};

/// `run`.
pub(super) async fn daemon(socket: PathBuf, args: RunArgs) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TSD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A host program may have set up logging already.
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).try_init();
    if args.background
        && let Err(e) = nix::unistd::setsid()
    {
        tracing::warn!("the daemon stays in the terminal's session: {e}");
    }
    let config = NodeConfig {
        state_dir: args.state_dir,
        socket,
        tun: args.tun,
        port: args.port,
        offload: !args.no_offload,
    };
    run(config)
        .await
        .map_err(|e| if e.is_users() { Failure::Yours(e.to_string()) } else { Failure::Ours(e.to_string()) })
}

/// `down`.
pub(super) async fn down(socket: &Path) -> Result<(), Failure> {
    let client = Client::new(socket);
    let status = client.get("status?peers=false").await?;
    if status.get("BackendState").and_then(Value::as_str) == Some("Stopped") {
        say("Tailscale was already stopped.");
        return Ok(());
    }
    let edit = json!({"WantRunning": false, "WantRunningSet": true});
    Ok(client.patch_prefs(&edit).await?)
}

/// `logout`.
pub(super) async fn logout(socket: &Path) -> Result<(), Failure> {
    let client = Client::new(socket);
    client.call(Method::POST, "logout", Vec::new()).await?;
    Ok(())
}

/// `status`.
pub(super) async fn status(socket: &Path, args: &StatusArgs) -> Result<(), Failure> {
    let status = Client::new(socket).get("status").await?;
    if args.json {
        print(&pretty(&status)?);
        return Ok(());
    }
    if let Some(why) = text::not_up(&status) {
        print(&why);
        return Err(Failure::Said);
    }
    print(&text::status(&status));
    Ok(())
}

fn pretty(value: &Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|e| Failure::Ours(e.to_string()))
}

fn ips(node: &Value) -> Vec<IpAddr> {
    let list = node.get("TailscaleIPs").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|v| v.as_str()?.parse().ok()).collect()
}

/// The node of a status with this name or address, and whether it is ourselves.
fn find<'a>(status: &'a Value, wanted: &str) -> Option<(&'a Value, bool)> {
    let matches = |node: &Value| {
        let full = node.get("DNSName").and_then(Value::as_str);
        let full = full.unwrap_or_default();
        let by_ip = wanted.parse().is_ok_and(|ip| ips(node).contains(&ip));
        by_ip
            || text::name_of(status, node).eq_ignore_ascii_case(wanted)
            || (!full.is_empty()
                && full.trim_end_matches('.').eq_ignore_ascii_case(wanted.trim_end_matches('.')))
    };
    let peers = status.get("Peer").and_then(Value::as_object);
    let peer = peers.into_iter().flat_map(|p| p.values()).find(|p| matches(p));
    if let Some(peer) = peer {
        return Some((peer, false));
    }
    status.get("Self").filter(|s| matches(s)).map(|s| (s, true))
}

/// `ip`.
pub(super) async fn ip(socket: &Path, args: &IpArgs) -> Result<(), Failure> {
    let status = Client::new(socket).get("status").await?;
    let node = match &args.peer {
        None => status.get("Self"),
        Some(peer) => Some(
            find(&status, peer)
                .ok_or_else(|| yours(format!("no peer found with name or address {peer:?}")))?
                .0,
        ),
    };
    let all = node.map(ips).unwrap_or_default();
    if all.is_empty() {
        let why = text::not_up(&status).unwrap_or_else(|| "no addresses yet".to_owned());
        return Err(yours(format!("no current addresses: {why}")));
    }
    let wanted = |ip: &&IpAddr| (!args.v4 || ip.is_ipv4()) && (!args.v6 || ip.is_ipv6());
    let chosen: Vec<&IpAddr> = all.iter().filter(wanted).collect();
    if chosen.is_empty() {
        let family = if args.v4 { "IPv4" } else { "IPv6" };
        return Err(yours(format!("no {family} address")));
    }
    for ip in chosen {
        print(&ip.to_string());
    }
    Ok(())
}

/// `ping`.
pub(super) async fn ping(socket: &Path, args: &PingArgs) -> Result<(), Failure> {
    let client = Client::new(socket);
    let status = client.get("status").await?;
    if let Some(why) = text::not_up(&status) {
        print(&why);
        return Err(Failure::Said);
    }
    let ip = target(&status, &args.target).await?;
    let path = format!("ping?ip={ip}&type=disco");
    let (mut sent, mut any) = (0_u32, false);
    loop {
        sent += 1;
        let last = sent == args.count;
        let call = client.call(Method::POST, &path, Vec::new());
        let result: Value = match tokio::time::timeout(args.timeout, call).await {
            Ok(Ok(bytes)) => serde_json::from_slice(&bytes)
                .map_err(|e| Failure::Ours(format!("the daemon's answer is no JSON: {e}")))?,
            Ok(Err(e)) => return Err(e.into()),
            Err(_) => json!({"Err": "no reply"}),
        };
        let error = result.get("Err").and_then(Value::as_str).unwrap_or_default();
        if error == "no reply" {
            print(&format!("ping \"{ip}\" timed out"));
            if last {
                return if any { Ok(()) } else { Err(yours("no reply")) };
            }
            continue;
        }
        if !error.is_empty() {
            if result.get("IsLocalIP") == Some(&Value::Bool(true)) {
                print(error);
                return Ok(());
            }
            return Err(yours(error));
        }
        any = true;
        print(&text::pong(&result));
        let direct = result.get("Endpoint").and_then(Value::as_str);
        if args.until_direct && direct.is_some_and(|e| !e.is_empty()) {
            return Ok(());
        }
        if last {
            return if args.until_direct { Err(yours("direct connection not established")) } else { Ok(()) };
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The address meant by an argument: itself, a node's name, or what DNS says.
async fn target(status: &Value, wanted: &str) -> Result<IpAddr, Failure> {
    if let Ok(ip) = wanted.parse() {
        return Ok(ip);
    }
    if let Some((node, own)) = find(status, wanted) {
        let Some(ip) = ips(node).first().copied() else {
            return Err(yours("node found but lacks an IP"));
        };
        if own {
            print(&format!("{ip} is local Tailscale IP"));
        }
        return Ok(ip);
    }
    let found = tokio::net::lookup_host((wanted, 0)).await;
    let ip = found.ok().and_then(|mut all| all.next()).map(|a| a.ip());
    ip.ok_or_else(|| yours(format!("no node and no address found for {wanted:?}")))
}

/// `netcheck`.
pub(super) async fn netcheck(socket: &Path, json: bool) -> Result<(), Failure> {
    let report = Client::new(socket).get("netcheck").await?;
    if report.get("NetInfo").is_none_or(Value::is_null) {
        return Err(yours("nothing measured: the node has no relay map yet; bring it up with `tsd node up`"));
    }
    if json {
        print(&pretty(&report)?);
    } else {
        print(&text::netcheck(&report));
    }
    Ok(())
}

/// `whois`.
pub(super) async fn whois(socket: &Path, json: bool, target: &str) -> Result<(), Failure> {
    let encoded = percent_encoding::utf8_percent_encode(target, percent_encoding::NON_ALPHANUMERIC);
    let found = match Client::new(socket).get(&format!("whois?addr={encoded}")).await {
        Err(CallError::Status(http::StatusCode::NOT_FOUND, _)) => {
            return Err(yours(format!("peer not found: nobody has {target}")));
        }
        other => other?,
    };
    if json {
        print(&pretty(&found)?);
        return Ok(());
    }
    let node = found.get("Node").cloned().unwrap_or_default();
    let user = found.get("UserProfile").cloned().unwrap_or_default();
    let of = |v: &Value, n: &str| {
        let text = v.get(n).and_then(Value::as_str).unwrap_or_default();
        text.chars().filter(|c| !c.is_control()).collect::<String>()
    };
    print("Machine:");
    print(&format!("  Name:          {}", of(&node, "Name").trim_end_matches('.')));
    print(&format!("  ID:            {}", of(&node, "StableID")));
    let list = |n: &str| {
        let all = node.get(n).and_then(Value::as_array);
        let all: Vec<&str> = all.into_iter().flatten().filter_map(Value::as_str).collect();
        all.join(", ")
    };
    print(&format!("  Addresses:     [{}]", list("Addresses")));
    let tags = list("Tags");
    if tags.is_empty() {
        print("User:");
        print(&format!("  Name:          {}", of(&user, "LoginName")));
        let id = user.get("ID").and_then(Value::as_u64).unwrap_or_default();
        print(&format!("  ID:            {id}"));
    } else {
        print(&format!("  Tags:          {tags}"));
    }
    Ok(())
}

/// `version`.
pub(super) async fn version(socket: &Path, daemon: bool) -> Result<(), Failure> {
    print(VERSION);
    if daemon {
        let status = Client::new(socket).get("status?peers=false").await?;
        let theirs = status.get("Version").and_then(Value::as_str);
        print(&format!("daemon: {}", theirs.unwrap_or("unknown")));
    }
    Ok(())
}
