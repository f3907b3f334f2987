//! What the configuration file and the command line say, validated once.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podway_proto::config::{Config, DEFAULT_PATH, KernelTable, Tunnel};
use podway_proto::types::{MacAddr, Mode, Vni};

use crate::state::check_node_name;

/// Each has a VXLAN device in the kernel, with an entry for each node.
const MAX_ALSO_VNIS: usize = 64;
/// Whoever probes less often than once an hour can as well not do it.
const MAX_HEALTH_INTERVAL: u16 = 3600;

/// What control needs of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of this node.
    pub node_name: String,
    /// How packets are sent to nodes that are told without a mode.
    pub default_mode: Mode,
    /// The VXLAN network identifier.
    pub vni: Vni,
    /// Further identifiers, in order.
    pub also_vnis: Vec<Vni>,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The uplink, if the file names one.
    pub uplink: Option<String>,
    /// This node's address on the underlay, if the file says it.
    pub underlay: Option<IpAddr>,
    /// MAC of this node's VTEP, if the file says it.
    pub vtep_mac: Option<MacAddr>,
    /// Whether the PodCIDRs of native nodes get kernel routes through their underlay addresses.
    pub auto_direct_node_routes: bool,
    /// What the dataplane may send natively over IPv4; all if the file does not say it.
    pub ipv4_native_routing_cidr: Option<Ipv4Net>,
    /// What the dataplane may send natively over IPv6; all if the file does not say it.
    pub ipv6_native_routing_cidr: Option<Ipv6Net>,
    /// Whether tunnels are taken from sources that are no known nodes.
    pub allow_unknown_vteps: bool,
    /// Whether what pods send out of the cluster is masqueraded.
    pub masquerade: bool,
    /// The table whose routes are taken over.
    pub import_kernel_table: Option<KernelTable>,
    /// How other nodes are probed; `None` when they are not.
    pub health: Option<HealthSettings>,
    /// Where metrics are served; `None` when they are not.
    pub metrics: Option<SocketAddr>,
}

/// How other nodes are probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthSettings {
    /// UDP port of the probes on every node.
    pub port: u16,
    /// Time between two probes of one path.
    pub interval: Duration,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}; name another with --config")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The file is no configuration. The parser's words show line and column.
    #[error("the configuration {path} is wrong:\n{message}")]
    Syntax {
        /// The file.
        path: String,
        /// Where and what.
        message: String,
    },
    /// A value cannot be used.
    #[error("the configuration's {key} cannot be used: {message}")]
    Value {
        /// Name of the field.
        key: &'static str,
        /// Why, and what to change.
        message: String,
    },
}

impl Settings {
    /// Reads `path`, or the default file if it is there and `path` is `None`.
    ///
    /// # Errors
    /// [`SettingsError`] names the file, and the line of what is wrong in it.
    pub fn load(path: Option<&Path>) -> Result<Self, SettingsError> {
        let config = match Self::read(path.unwrap_or(Path::new(DEFAULT_PATH))) {
            Err(SettingsError::Read { source, .. })
                if path.is_none() && source.kind() == io::ErrorKind::NotFound =>
            {
                Config::default()
            }
            config => config?,
        };
        Self::from_config(config)
    }

    /// Reads a file; no value is checked.
    ///
    /// # Errors
    /// [`SettingsError`] names the file, and the line of what is wrong in it.
    pub fn read(file: &Path) -> Result<Config, SettingsError> {
        let path = || file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|source| SettingsError::Read {
            path: path(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| SettingsError::Syntax {
            path: path(),
            message: error.to_string(),
        })
    }

    /// Checks the fields that are control's.
    ///
    /// # Errors
    /// [`SettingsError::Value`] names the field.
    pub fn from_config(config: Config) -> Result<Self, SettingsError> {
        let value = |key, message: &str| SettingsError::Value {
            key,
            message: message.to_owned(),
        };
        let health = health(&config).map_err(|(key, message)| value(key, message))?;
        let node_name = match config.node_name {
            Some(name) => name,
            None => host_name(),
        };
        check_node_name(&node_name).map_err(|error| value("node-name", &error.message))?;
        if config.vxlan_port == 0 {
            return Err(value(
                "vxlan-port",
                "0 is no port; use 4789, or 8472 as Cilium does",
            ));
        }
        if let Some(mac) = config.vtep_mac
            && (mac.is_multicast() || mac == MacAddr::default())
        {
            return Err(value(
                "vtep-mac",
                "a VTEP has a unicast MAC such as 02:50:c0:a8:01:01",
            ));
        }
        if let Some(address) = config.underlay_address
            && (address.is_unspecified() || address.is_multicast() || address.is_loopback())
        {
            return Err(value(
                "underlay-address",
                "use a unicast address of the uplink",
            ));
        }
        let native_cidrs = (
            config.ipv4_native_routing_cidr,
            config.ipv6_native_routing_cidr,
        );
        if config.masquerade && native_cidrs == (None, None) {
            return Err(value(
                "masquerade",
                "set ipv4-native-routing-cidr, ipv6-native-routing-cidr or both to what pods reach \
                 with addresses of their own, such as 10.0.0.0/8",
            ));
        }
        if config.metrics.is_some_and(|address| address.port() == 0) {
            return Err(value(
                "metrics",
                "0 is no port; use a free one of TCP, such as 127.0.0.1:9467",
            ));
        }
        let mut also_vnis = config.also_vnis;
        also_vnis.retain(|vni| *vni != config.vni);
        also_vnis.sort_unstable();
        also_vnis.dedup();
        if also_vnis.len() > MAX_ALSO_VNIS {
            return Err(value(
                "also-vnis",
                "each has a VXLAN device in the kernel; name at most 64",
            ));
        }
        Ok(Self {
            node_name,
            default_mode: match config.tunnel {
                Tunnel::Vxlan => Mode::Vxlan,
                Tunnel::Disabled => Mode::Native,
            },
            vni: config.vni,
            also_vnis,
            vxlan_port: config.vxlan_port,
            uplink: config.uplink,
            underlay: config.underlay_address,
            vtep_mac: config.vtep_mac,
            auto_direct_node_routes: config.auto_direct_node_routes,
            ipv4_native_routing_cidr: config.ipv4_native_routing_cidr,
            ipv6_native_routing_cidr: config.ipv6_native_routing_cidr,
            allow_unknown_vteps: config.allow_unknown_vteps,
            masquerade: config.masquerade,
            import_kernel_table: config.import_kernel_table,
            health,
            metrics: config.metrics,
        })
    }

    /// All identifiers that tunnels may have.
    pub fn vnis(&self) -> impl Iterator<Item = Vni> {
        std::iter::once(self.vni).chain(self.also_vnis.iter().copied())
    }

    /// The `native-routing-cidr` of the IP version of `prefix`.
    pub fn native_routing_cidr(&self, prefix: IpNet) -> Option<IpNet> {
        match prefix {
            IpNet::V4(_) => self.ipv4_native_routing_cidr.map(IpNet::V4),
            IpNet::V6(_) => self.ipv6_native_routing_cidr.map(IpNet::V6),
        }
    }
}

/// How other nodes are probed, or the key that is wrong and what to write there.
fn health(config: &Config) -> Result<Option<HealthSettings>, (&'static str, &'static str)> {
    if !config.health {
        return Ok(None);
    }
    let (port, seconds) = (config.health_port, config.health_interval_seconds);
    if port == 0 || port == config.vxlan_port {
        let remedy = "use a UDP port that nothing else has on any node, such as 4799; the tunnels \
                      have vxlan-port";
        return Err(("health-port", remedy));
    }
    if !(1..=MAX_HEALTH_INTERVAL).contains(&seconds) {
        return Err((
            "health-interval-seconds",
            "use 1 to 3600, or set health = false",
        ));
    }
    Ok(Some(HealthSettings {
        port,
        interval: Duration::from_secs(seconds.into()),
    }))
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings, SettingsError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("podway.toml");
        std::fs::write(&path, text).unwrap();
        Settings::load(Some(&path))
    }

    #[test]
    fn the_articles_names_are_read() {
        let settings = load(
            "node-name = 'node-a'\ntunnel = 'disabled'\nauto-direct-node-routes = true\n\
             ipv4-native-routing-cidr = '10.0.0.0/8'\nvni = 7\nalso-vnis = [77, 5, 7, 77]\n\
             vxlan-port = 8472\nuplink = 'eth0'\n\
             [dataplane]\nworkers = 2\ncores = [2, 3]\nwait = 'spin'\n",
        )
        .unwrap();
        assert_eq!(
            settings,
            Settings {
                node_name: "node-a".into(),
                default_mode: Mode::Native,
                vni: Vni::try_from(7).unwrap(),
                also_vnis: [5, 77].map(|vni| Vni::try_from(vni).unwrap()).to_vec(),
                vxlan_port: 8472,
                uplink: Some("eth0".into()),
                underlay: None,
                vtep_mac: None,
                auto_direct_node_routes: true,
                ipv4_native_routing_cidr: Some("10.0.0.0/8".parse().unwrap()),
                ipv6_native_routing_cidr: None,
                allow_unknown_vteps: false,
                masquerade: false,
                import_kernel_table: None,
                health: Some(HealthSettings {
                    port: 4799,
                    interval: Duration::from_secs(10),
                }),
                metrics: None,
            }
        );
    }

    #[test]
    fn health_has_a_port_of_its_own() {
        assert_eq!(load("health = false\n").unwrap().health, None);
        let health = load("health-port = 5000\nhealth-interval-seconds = 1\n");
        let expected = HealthSettings {
            port: 5000,
            interval: Duration::from_secs(1),
        };
        assert_eq!(health.unwrap().health, Some(expected));
        for (line, key) in [
            ("health-port = 0", "health-port"),
            ("health-port = 4789", "health-port"),
            ("health-interval-seconds = 0", "health-interval-seconds"),
            ("health-interval-seconds = 3601", "health-interval-seconds"),
        ] {
            let error = load(&format!("{line}\n")).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
            assert!(load(&format!("health = false\n{line}\n")).is_ok());
        }
    }

    #[test]
    fn metrics_are_served_where_it_is_said() {
        let metrics = |text: &str| load(text).map(|settings| settings.metrics);
        assert_eq!(metrics("").unwrap(), None);
        for address in ["127.0.0.1:9467", "[::1]:9467"] {
            let told = metrics(&format!("metrics = '{address}'\n")).unwrap();
            assert_eq!(told, Some(address.parse().unwrap()));
        }
        for (wrong, named) in [
            ("9467", "line 1"),
            ("'localhost:9467'", "line 1"),
            ("'127.0.0.1'", "line 1"),
            ("'127.0.0.1:0'", "127.0.0.1:9467"),
        ] {
            let error = metrics(&format!("metrics = {wrong}\n")).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_table_is_a_number_or_main() {
        let table = |text: &str| load(text).map(|settings| settings.import_kernel_table);
        let main = table("import-kernel-table = 'main'\n").unwrap();
        assert_eq!(main, Some(KernelTable::MAIN));
        assert_eq!(table("import-kernel-table = 254\n").unwrap(), main);
        let other = table("import-kernel-table = 100\n").unwrap();
        assert_eq!(other.map(KernelTable::number), Some(100));
        for wrong in ["0", "255", "-1", "'mian'", "true"] {
            let error = table(&format!("import-kernel-table = {wrong}\n")).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("line 1") && error.contains("\"main\""),
                "{error}"
            );
        }
    }

    #[test]
    fn masquerading_needs_to_know_where_not() {
        let error = load("masquerade = true\n").unwrap_err().to_string();
        assert!(error.contains("ipv4-native-routing-cidr"), "{error}");
        let settings = load("masquerade = true\nipv6-native-routing-cidr = 'fd00::/8'\n").unwrap();
        assert!(settings.masquerade);
    }

    #[test]
    fn an_error_names_the_line_or_the_field() {
        let error = load("node-name = 'a'\nvni = 16777216\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 2") && error.contains("out of range"),
            "{error}"
        );
        let error = load("tunel = 'vxlan'\n").unwrap_err().to_string();
        assert!(
            error.contains("line 1") && error.contains("tunel"),
            "{error}"
        );
        let error = load("vxlan-port = 0\n").unwrap_err().to_string();
        assert!(error.contains("vxlan-port"), "{error}");
        let error = load("node-name = '10.0.0.1'\n").unwrap_err().to_string();
        assert!(error.contains("node-name"), "{error}");
        let error = Settings::load(Some(Path::new("/nonexistent/podway.toml"))).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/podway.toml"),
            "{error}"
        );
    }
}
