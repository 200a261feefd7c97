//! What is printed, kept apart so that it can be tested as text.

use std::io::Write;

use serde_json::Value;

/// Prints a result line; a closed pipe is no error of ours.
pub(super) fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Talks to the person.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn str_of<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn flag(value: &Value, name: &str) -> bool {
    value.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

/// Why the node is not up, in the official client's words; `None` while starting or running.
pub(super) fn not_up(status: &Value) -> Option<String> {
    match str_of(status, "BackendState") {
        "Running" | "Starting" => None,
        "Stopped" => Some("Tailscale is stopped.".to_owned()),
        "NeedsLogin" => {
            let url = str_of(status, "AuthURL");
            let link = if url.is_empty() { String::new() } else { format!("\nLog in at: {url}") };
            Some(format!("Logged out.{link}"))
        }
        "NeedsMachineAuth" => Some("Machine is not yet approved by tailnet admin.".to_owned()),
        other => Some(format!("unexpected state: {other}")),
    }
}

/// The bare name of a node of `status`.
pub(super) fn name_of(status: &Value, peer: &Value) -> String {
    let full = str_of(peer, "DNSName").trim_end_matches('.');
    let suffix = str_of(status, "MagicDNSSuffix");
    let bare = full.strip_suffix(suffix).unwrap_or(full).trim_end_matches('.');
    if bare.is_empty() { format!("(\"{}\")", clean(str_of(peer, "HostName"))) } else { clean(bare) }
}

/// Names come from other machines: nothing that moves a terminal may pass.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(253).collect()
}

fn owner(status: &Value, peer: &Value) -> String {
    let id = number(peer, "UserID");
    if id == 0 {
        return "-".to_owned();
    }
    let user = status.get("User").and_then(|u| u.get(id.to_string()));
    let Some(login) = user.map(|u| str_of(u, "LoginName")) else {
        return id.to_string();
    };
    match login.split_once('@') {
        Some((name, _)) => format!("{}@", clean(name)),
        None => clean(login),
    }
}

fn ago(peer: &Value) -> String {
    let Ok(at) = chrono::DateTime::parse_from_rfc3339(str_of(peer, "LastSeen")) else {
        return String::new();
    };
    let gone = crate::clock::Now::read().wall - at.to_utc();
    if at.timestamp() < 0 || gone.num_minutes() < 1 {
        return String::new();
    }
    let (days, hours, minutes) = (gone.num_days(), gone.num_hours(), gone.num_minutes());
    if days > 0 {
        format!(", last seen {days}d ago")
    } else if hours > 0 {
        format!(", last seen {hours}h ago")
    } else {
        format!(", last seen {minutes}m ago")
    }
}

/// What a peer does at present.
fn activity(peer: &Value) -> String {
    let (rx, tx) = (number(peer, "RxBytes"), number(peer, "TxBytes"));
    let traffic = rx != 0 || tx != 0;
    let online = flag(peer, "Online");
    let offline = if online { String::new() } else { format!("; offline{}", ago(peer)) };
    let mut out = if flag(peer, "Active") {
        let current = str_of(peer, "CurAddr");
        let relay = str_of(peer, "Relay");
        let way = if !current.is_empty() {
            format!("direct {current}")
        } else if !relay.is_empty() {
            format!("relay \"{}\"", clean(relay))
        } else {
            String::new()
        };
        format!("active; {way}{offline}")
    } else if traffic {
        format!("idle{offline}")
    } else if !online {
        format!("offline{}", ago(peer))
    } else {
        "-".to_owned()
    };
    if flag(peer, "Expired") {
        out.push_str("; expired");
    }
    if traffic {
        out.push_str(&format!(", tx {tx} rx {rx}"));
    }
    out
}

/// The table of `status`, with the health lines after it.
pub(super) fn status(status: &Value) -> String {
    let mut rows: Vec<[String; 5]> = Vec::new();
    let mut row = |peer: &Value| {
        let ips = peer.get("TailscaleIPs").and_then(Value::as_array);
        let ip = ips.and_then(|a| a.first()).and_then(Value::as_str);
        rows.push([
            ip.unwrap_or_default().to_owned(),
            name_of(status, peer),
            owner(status, peer),
            clean(str_of(peer, "OS")),
            activity(peer),
        ]);
    };
    if let Some(own) = status.get("Self") {
        row(own);
    }
    let mut peers: Vec<&Value> =
        status.get("Peer").and_then(Value::as_object).map(|p| p.values().collect()).unwrap_or_default();
    peers.sort_by_key(|p| (str_of(p, "DNSName").to_owned(), str_of(p, "HostName").to_owned()));
    peers.into_iter().for_each(&mut row);
    let mut widths = [0_usize; 5];
    for r in &rows {
        for (width, cell) in widths.iter_mut().zip(r) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for r in &rows {
        let mut line = String::new();
        for (cell, width) in r.iter().zip(widths) {
            let pad = (width + 2).saturating_sub(cell.chars().count());
            line.push_str(cell);
            line.push_str(&" ".repeat(pad));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    let health = health(status);
    if !health.is_empty() {
        out.push('\n');
        out.push_str(&health);
    }
    out.trim_end().to_owned()
}

/// The health lines, empty when all is well.
pub(super) fn health(status: &Value) -> String {
    let lines = status.get("Health").and_then(Value::as_array);
    let lines: Vec<&str> = lines.into_iter().flatten().filter_map(Value::as_str).collect();
    if lines.is_empty() {
        return String::new();
    }
    let mut out = "# Health check:\n".to_owned();
    for line in lines {
        out.push_str(&format!("#     - {}\n", clean_line(line)));
    }
    out
}

fn clean_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(1000).collect()
}

/// One pong line.
pub(super) fn pong(result: &Value) -> String {
    let seconds = result.get("LatencySeconds").and_then(Value::as_f64);
    let millis = (seconds.unwrap_or_default() * 1000.0).round();
    let via = match (number(result, "DERPRegionID"), str_of(result, "Endpoint")) {
        (0, endpoint) => endpoint.to_owned(),
        (_, _) => format!("DERP({})", clean(str_of(result, "DERPRegionCode"))),
    };
    let latency = if millis >= 1000.0 { format!("{}s", millis / 1000.0) } else { format!("{millis}ms") };
    format!(
        "pong from {} ({}) via {via} in {latency}",
        clean(str_of(result, "NodeName")),
        str_of(result, "NodeIP")
    )
}

/// The report of `netcheck`.
pub(super) fn netcheck(report: &Value) -> String {
    let info = report.get("NetInfo").cloned().unwrap_or_default();
    let known = |name: &str| match info.get(name).and_then(Value::as_bool) {
        Some(true) => "yes",
        Some(false) => "no",
        None => "unknown",
    };
    let empty = serde_json::Map::new();
    let regions =
        report.get("DERPMap").and_then(|m| m.get("Regions")).and_then(Value::as_object).unwrap_or(&empty);
    let code = |id: &str| {
        let region = regions.get(id);
        let code = region.map(|r| str_of(r, "RegionCode")).unwrap_or_default();
        if code.is_empty() { id.to_owned() } else { clean(code) }
    };
    let home = number(&info, "PreferredDERP").to_string();
    let endpoints = report.get("Endpoints").and_then(Value::as_array);
    let endpoints: Vec<&str> = endpoints.into_iter().flatten().filter_map(Value::as_str).collect();
    let mut out = format!(
        "Report:\n\t* UDP: {}\n\t* IPv6: {}\n\t* MappingVariesByDestIP: {}\n\t* Endpoints: {}\n\t* Nearest DERP: {}\n\t* DERP latency:\n",
        known("WorkingUDP"),
        known("WorkingIPv6"),
        known("MappingVariesByDestIP"),
        endpoints.join(", "),
        if home == "0" { "unknown".to_owned() } else { code(&home) },
    );
    let latency = info.get("DERPLatency").and_then(Value::as_object);
    for (name, seconds) in latency.into_iter().flatten() {
        let (id, family) = name.split_once('-').unwrap_or((name, ""));
        let millis = seconds.as_f64().unwrap_or_default() * 1000.0;
        out.push_str(&format!("\t\t- {} ({family}): {millis:.1}ms\n", code(id)));
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pong_says_the_way() {
        let direct = json!({"NodeName":"o2","NodeIP":"100.64.0.2","Endpoint":"203.0.113.9:41641",
            "LatencySeconds":0.0031,"DERPRegionID":0});
        assert_eq!(pong(&direct), "pong from o2 (100.64.0.2) via 203.0.113.9:41641 in 3ms");
        let relay = json!({"NodeName":"o2","NodeIP":"100.64.0.2","Endpoint":"",
            "LatencySeconds":0.02,"DERPRegionID":900,"DERPRegionCode":"tsd"});
        assert_eq!(pong(&relay), "pong from o2 (100.64.0.2) via DERP(tsd) in 20ms");
    }

    #[test]
    fn the_status_table_is_like_the_official_one() {
        let status_json = json!({
            "BackendState": "Running", "MagicDNSSuffix": "tail.internal",
            "Self": {"TailscaleIPs":["100.64.0.1"],"DNSName":"o1.tail.internal.","UserID":1,
                "OS":"linux","Online":true},
            "Peer": {"nodekey:a": {"TailscaleIPs":["100.64.0.2"],"DNSName":"o2.tail.internal.",
                "UserID":1,"OS":"linux","Online":true,"Active":true,"CurAddr":"1.2.3.4:5",
                "RxBytes":2,"TxBytes":1}},
            "User": {"1": {"LoginName":"alice@example"}},
            "Health": ["no relay is connected"],
        });
        let expected = "100.64.0.1  o1  alice@  linux  -\n\
            100.64.0.2  o2  alice@  linux  active; direct 1.2.3.4:5, tx 1 rx 2\n\n\
            # Health check:\n#     - no relay is connected";
        assert_eq!(status(&status_json), expected);
    }

    #[test]
    fn hostile_names_cannot_move_the_terminal() {
        let peer = json!({"HostName":"a\u{1b}[2Jb","DNSName":""});
        assert_eq!(name_of(&json!({}), &peer), "(\"a[2Jb\")");
    }

    #[test]
    fn states_that_are_not_up_are_told() {
        let out = json!({"BackendState":"NeedsLogin","AuthURL":"http://x/r/1"});
        assert_eq!(not_up(&out).as_deref(), Some("Logged out.\nLog in at: http://x/r/1"));
        assert_eq!(not_up(&json!({"BackendState":"Running"})), None);
    }
}
