//! The flags of `tsd serve`. Each stands above its environment variable, which stands above the file.

use figment::value::Dict;

/// Flags of `tsd serve` beside the global `--state-dir`.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct ServeFlags {
    /// Configuration file (TOML); also TSD_CONFIG. Every key is explained in config.example.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,
    /// What clients dial, such as http://203.0.113.9:8080 or https://vpn.example.com
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// HTTP listener, addr:port or off [default: [::]:8080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// TLS listener, addr:port or off [default: [::]:443]
    #[arg(long, value_name = "ADDR")]
    pub tls_listen: Option<String>,
    /// STUN listener (UDP), addr:port or off [default: [::]:3478]
    #[arg(long, value_name = "ADDR")]
    pub stun_listen: Option<String>,
    /// Certificate chain (PEM) for the TLS listener
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// Private key (PEM) for the TLS listener
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<String>,
    /// Policy file that is read at start and on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub policy_file: Option<String>,
    /// error, warn, info, debug, trace, or a filter such as info,tsd::derp=debug
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl ServeFlags {
    /// The flags that were given, as a layer of configuration.
    #[must_use]
    pub(super) fn layer(&self, state_dir: Option<&str>) -> Dict {
        let mut out = Dict::new();
        let mut put = |key: &str, value: Option<&str>| {
            if let Some(value) = value {
                out.insert(key.to_owned(), value.into());
            }
        };
        put("state_dir", state_dir);
        put("url", self.url.as_deref());
        put("listen", self.listen.as_deref());
        put("tls_listen", self.tls_listen.as_deref());
        put("stun_listen", self.stun_listen.as_deref());
        put("tls_cert", self.tls_cert.as_deref());
        put("tls_key", self.tls_key.as_deref());
        put("policy_file", self.policy_file.as_deref());
        let mut log = Dict::new();
        if let Some(level) = &self.log_level {
            log.insert("level".into(), level.as_str().into());
        }
        if let Some(format) = &self.log_format {
            log.insert("format".into(), format.as_str().into());
        }
        if !log.is_empty() {
            out.insert("log".into(), log.into());
        }
        out
    }
}
