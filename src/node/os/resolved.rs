//! systemd-resolved, spoken to by `resolvectl` (dataplane.md 8.6).

use tokio::process::Command;

use crate::node::engine::DnsOs;

async fn run(args: &[&str]) -> Result<(), String> {
    let output = Command::new("resolvectl")
        .args(args)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| format!("cannot run resolvectl: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let first = why.lines().next().unwrap_or("no reason given");
    Err(format!("resolvectl {}: {first}", args.join(" ")))
}

/// Gives the interface quad-100 for the tailnet's names, with the search domains.
pub(super) async fn apply(interface: &str, dns: &DnsOs) -> Result<(), String> {
    run(&["dns", interface, "100.100.100.100"]).await?;
    let routing: Vec<String> =
        dns.match_domains.iter().filter(|d| !dns.search.contains(d)).map(|d| format!("~{d}")).collect();
    let mut args = vec!["domain", interface];
    args.extend(dns.search.iter().map(String::as_str));
    args.extend(routing.iter().map(String::as_str));
    if args.len() == 2 {
        args.push("");
    }
    run(&args).await?;
    for setting in ["default-route", "llmnr", "mdns", "dnssec", "dnsovertls"] {
        // Older versions lack some of these; names work without them.
        if let Err(e) = run(&[setting, interface, "no"]).await {
            tracing::debug!("{e}");
        }
    }
    Ok(())
}

/// Takes everything back.
pub(super) async fn revert(interface: &str) -> Result<(), String> {
    run(&["revert", interface]).await
}
