//! Flags, environment and file, turned once into a checked configuration.
//!
//! [`load`] layers file, environment and flags by figment into a [`RawConfig`], refuses keys nobody
//! knows, and hands the rest to the pure [`check`], whose result is the only thing the server sees.
//! Every complaint names the place (file and line, variable or flag) and the remedy.

mod check;
mod check_derp;
mod check_dns;
mod checked;
mod duration;
mod flags;
mod place;
mod raw;
mod url;

use std::path::{Path, PathBuf};

use figment::providers::Format as _;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

pub use check::{Fault, check, default_state_dir};
pub use checked::{Config, DerpConfig, DnsConfig, Listen, LogFormat, MetricsPolicy, Region, Relay, Resolver};
pub use duration::{DurationError, parse_duration};
pub use flags::ServeFlags;
pub use raw::{RawConfig, RawRecord, RawRegion, RawRelay, env_name, key_paths};
pub use url::ServerUrl;

/// Read when neither `--config` nor `TSD_CONFIG` names a file; may be absent.
pub const DEFAULT_FILE: &str = "/etc/tsd/config.toml";

/// A file larger than this is no configuration.
const MAX_FILE: u64 = 1 << 20;

/// Everything that is wrong with a configuration, each with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl ConfigError {
    fn one(text: impl Into<String>) -> Self {
        Self(vec![text.into()])
    }
}

struct Layer {
    name: &'static str,
    dict: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// A configuration file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileText {
    /// Its name as given.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// What the process was given, read once, so that the layering itself is pure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Flags.
    pub flags: ServeFlags,
    /// The global `--state-dir`.
    pub state_dir: Option<String>,
    /// `TSD_…` variables.
    pub env: Vec<(String, String)>,
    /// The configuration file, if any.
    pub file: Option<FileText>,
    /// Where state goes when nobody says.
    pub default_state_dir: PathBuf,
}

impl Sources {
    /// Reads environment and file.
    ///
    /// # Errors
    /// When a file that was named cannot be read.
    pub fn read(flags: ServeFlags, state_dir: Option<String>) -> Result<Self, ConfigError> {
        let env: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .filter(|(k, _)| k.starts_with("TSD_"))
            .collect();
        let from_env = env.iter().find(|(k, _)| k == "TSD_CONFIG").map(|(_, v)| v);
        let named = flags.config.as_ref().or(from_env);
        let file = match named {
            Some(name) => Some(read_file(Path::new(name))?),
            None if Path::new(DEFAULT_FILE).exists() => Some(read_file(Path::new(DEFAULT_FILE))?),
            None => None,
        };
        let default_state_dir = default_state_dir(
            nix::unistd::geteuid().is_root(),
            std::env::var_os("XDG_STATE_HOME").map(PathBuf::from),
            std::env::var_os("HOME").map(PathBuf::from),
        );
        Ok(Self { flags, state_dir, env, file, default_state_dir })
    }

    /// The state directory alone, for commands that only need the socket: a fault elsewhere in the
    /// configuration must not keep an admin out.
    #[must_use]
    pub fn state_dir_only(&self) -> PathBuf {
        self.figment()
            .ok()
            .and_then(|f| f.extract_inner::<String>("state_dir").ok())
            .map_or_else(|| self.default_state_dir.clone(), PathBuf::from)
    }

    fn figment(&self) -> Result<Figment, ConfigError> {
        let mut figment = Figment::new();
        if let Some(file) = &self.file {
            figment = figment.merge(Layer { name: "file", dict: parse_toml(file)? });
        }
        Ok(figment
            .merge(Layer { name: "environment", dict: env_layer(&self.env) })
            .merge(Layer { name: "flags", dict: self.flags.layer(self.state_dir.as_deref()) }))
    }

    /// Variables that start with `TSD_` and mean nothing; worth a warning, since a typo there is
    /// otherwise silent.
    #[must_use]
    pub fn unknown_env(&self) -> Vec<String> {
        let known: Vec<String> = key_paths().iter().map(|p| env_name(p)).collect();
        self.env
            .iter()
            .map(|(k, _)| k.clone())
            .filter(|k| k != "TSD_CONFIG" && !k.starts_with("TSD_NODE_") && !known.contains(k))
            .collect()
    }

    fn place(&self, figment: &Figment, key: &str) -> Option<String> {
        let metadata = figment.find_metadata(key)?;
        Some(self.place_in(&metadata.name, key))
    }

    fn place_in(&self, layer: &str, key: &str) -> String {
        match layer {
            "environment" => env_name(key),
            "flags" => raw::flag_name(key),
            _ => match &self.file {
                Some(file) => match place::line_of(&file.text, key) {
                    Some(line) => format!("{}:{line}", file.path.display()),
                    None => file.path.display().to_string(),
                },
                None => layer.to_owned(),
            },
        }
    }
}

/// Layers and checks.
///
/// # Errors
/// Every fault found, each with place and remedy.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    let figment = sources.figment()?;
    if let Some(file) = &sources.file {
        let unknown = unknown_keys(file, &parse_toml(file)?);
        if !unknown.is_empty() {
            return Err(ConfigError(unknown));
        }
    }
    let raw: RawConfig = figment.extract().map_err(|errors| {
        ConfigError(
            errors
                .into_iter()
                .map(|error| {
                    let key = error.path.join(".");
                    let layer = error.metadata.as_ref().map_or("file", |m| &*m.name);
                    let place = sources.place_in(layer, &key);
                    format!("{place}: {key}: {}", error.kind)
                })
                .collect(),
        )
    })?;
    check(&raw, &sources.default_state_dir).map_err(|faults| {
        let text = |fault: Fault| match sources.place(&figment, &fault.key) {
            Some(place) => format!("{place}: {}: {}", fault.key, fault.text),
            None => format!("{}: {}", fault.key, fault.text),
        };
        ConfigError(faults.into_iter().map(text).collect())
    })
}

fn read_file(path: &Path) -> Result<FileText, ConfigError> {
    let say = |what: String| ConfigError::one(format!("{}: {what}", path.display()));
    let size = std::fs::metadata(path)
        .map_err(|e| say(format!("cannot be read: {e}; check --config or TSD_CONFIG")))?
        .len();
    if size > MAX_FILE {
        return Err(say(format!("{size} bytes is too large for a configuration file")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| say(format!("cannot be read: {e}")))?;
    Ok(FileText { path: path.to_owned(), text })
}

fn parse_toml(file: &FileText) -> Result<Dict, ConfigError> {
    let data = figment::providers::Toml::string(&file.text).data().map_err(|error| {
        let whole = error.kind.to_string();
        let place = toml_position(&whole);
        let what = whole.lines().rev().find(|l| !l.trim().is_empty());
        ConfigError::one(format!(
            "{}{place}: {}; strings need quotes, tables look like [derp]",
            file.path.display(),
            what.unwrap_or("no TOML").trim()
        ))
    })?;
    Ok(data.into_values().next().unwrap_or_default())
}

/// `:3:5` out of `TOML parse error at line 3, column 5`.
fn toml_position(message: &str) -> String {
    let number_after = |word: &str| {
        let (_, rest) = message.split_once(word)?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    };
    match (number_after("line "), number_after("column ")) {
        (Some(line), Some(column)) => format!(":{line}:{column}"),
        _ => String::new(),
    }
}

fn unknown_keys(file: &FileText, dict: &Dict) -> Vec<String> {
    let known = key_paths();
    let tables: Vec<&str> = known.iter().filter_map(|p| p.split_once('.')).map(|(t, _)| t).collect();
    let mut out = Vec::new();
    let mut complain = |path: &str| {
        let line = place::line_of(&file.text, path).map(|l| format!(":{l}"));
        let names = known.iter().map(String::as_str).chain(tables.iter().copied());
        let remedy = match place::nearest(path, names) {
            Some(near) => format!("did you mean {near}?"),
            None => "remove it; config.example.toml lists every key".to_owned(),
        };
        out.push(format!(
            "{}{}: unknown key {path:?}; {remedy}",
            file.path.display(),
            line.unwrap_or_default()
        ));
    };
    for (key, value) in dict {
        match value {
            Value::Dict(_, inner) if tables.contains(&key.as_str()) => {
                for sub in inner.keys().map(|k| format!("{key}.{k}")) {
                    if !known.contains(&sub) {
                        complain(&sub);
                    }
                }
            }
            _ if known.contains(key) || tables.contains(&key.as_str()) => {}
            _ => complain(key),
        }
    }
    out
}

/// Keys that are lists: several values stand in one variable, separated by commas.
const LISTS: [&str; 4] = ["trusted_proxies", "dns.resolvers", "dns.search", "policy.domains"];
/// Keys that are no text; structured ones are written as figment reads them: `{a=[..]}`.
const TYPED: [&str; 7] = [
    "derp.enabled",
    "derp.region_id",
    "derp.public_port",
    "derp.regions",
    "stun.public_port",
    "dns.magic_dns",
    "dns.split",
];

fn env_layer(env: &[(String, String)]) -> Dict {
    let mut out = Dict::new();
    for path in key_paths() {
        let name = env_name(&path);
        let Some((_, text)) = env.iter().find(|(k, _)| *k == name) else {
            continue;
        };
        let value: Value = if LISTS.contains(&path.as_str()) {
            let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
            Value::from(parts.map(Value::from).collect::<Vec<_>>())
        } else if TYPED.contains(&path.as_str()) || path == "dns.extra_records" {
            // Infallible: what is no number, bool, list or table becomes a string, which the types
            // then refuse with the variable's name.
            text.parse().unwrap_or_else(|_| Value::from(text.as_str()))
        } else {
            Value::from(text.as_str())
        };
        match path.split_once('.') {
            None => drop(out.insert(path, value)),
            Some((table, key)) => {
                let entry = out.entry(table.to_owned()).or_insert_with(|| Dict::new().into());
                if let Value::Dict(_, inner) = entry {
                    inner.insert(key.to_owned(), value);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
