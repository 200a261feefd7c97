//! The URL that clients dial: scheme, host and port, nothing else.

use std::net::{IpAddr, Ipv6Addr};

/// The URL clients dial: scheme, host and port, nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    /// `https`, else `http`.
    pub https: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Port, the scheme's own included.
    pub port: u16,
}

impl ServerUrl {
    /// The host as an address, when it is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Reads `http://host[:port]`.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn parse(text: &str) -> Result<Self, String> {
        let example = "write it like http://203.0.113.9:8080 or https://vpn.example.com";
        let uri: http::Uri = text.parse().map_err(|_| format!("{text:?} is no URL; {example}"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => {
                return Err(format!("{text:?} has no http:// or https:// in front; {example}"));
            }
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(format!("{text:?} has a path; clients need the bare server; {example}"));
        }
        let authority = uri.authority().map_or("", http::uri::Authority::as_str);
        if authority.contains('@') {
            return Err(format!("a user name has no place in the URL; {example}"));
        }
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let dns = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if host.is_empty() || (host.parse::<Ipv6Addr>().is_err() && !host.chars().all(dns)) {
            return Err(format!("{text:?} has no usable host; {example}"));
        }
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            // What stands after the colon is no port number.
            None if authority.rsplit(']').next().is_some_and(|rest| rest.contains(':')) => {
                return Err(format!("{text:?} has no usable port; {example}"));
            }
            None if https => 443,
            None => 80,
        };
        if port == 0 {
            return Err(format!("port 0 cannot be dialled; {example}"));
        }
        Ok(Self { https, host: host.to_ascii_lowercase(), port })
    }
}

impl std::fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        let host = match self.host.parse::<Ipv6Addr>() {
            Ok(ip) => format!("[{ip}]"),
            Err(_) => self.host.clone(),
        };
        write!(f, "{scheme}://{host}")?;
        if self.port == if self.https { 443 } else { 80 } { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}
