//! The table of nftables that is Podway's own.
//!
//! - [`masquerade`]: what pods send out of the cluster gets the node's address.
//! - [`strangers`]: the kernel takes no tunnels from unknown nodes.
//! - [`changes`]: what the kernel tells, also of others' tables.
//! - [`nft`]: putting the rules into the kernel, and noticing when somebody takes them out.
//!
//! Like everything else in the kernel the table stays when control stops. It goes when control
//! starts with neither wanted, and with `--cleanup`.

pub mod changes;
pub mod masquerade;
pub mod nft;
pub mod strangers;

use crate::settings::Settings;
use crate::world::World;

use self::masquerade::Masquerade;
use self::strangers::Strangers;

/// Name of the table; its family is `inet`.
pub const TABLE: &str = "podway";

/// Removes the table, whether it is there or not.
const REMOVAL: &str = "add table inet podway\ndelete table inet podway\n";

/// What is in the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    masquerade: Option<Masquerade>,
    strangers: Option<Strangers>,
}

impl Rules {
    /// Whether there is to be a table.
    pub fn wanted(settings: &Settings) -> bool {
        settings.masquerade || !settings.allow_unknown_vteps
    }

    /// The rules as they should be; `None` for no table.
    pub fn of(world: &World<'_>) -> Option<Self> {
        Self::wanted(world.settings).then(|| Self {
            masquerade: Masquerade::of(world),
            strangers: Strangers::of(world),
        })
    }

    /// What `nft -f` reads: one transaction that leaves the table with these rules and no others.
    pub fn text(&self) -> String {
        let mut text = format!("{REMOVAL}table inet {TABLE} {{\n");
        if let Some(masquerade) = &self.masquerade {
            masquerade.add(&mut text);
        }
        if let Some(strangers) = &self.strangers {
            strangers.add(&mut text);
        }
        text.push_str("}\n");
        text
    }

    /// What is wrong without them.
    fn lack(&self) -> &'static str {
        match (&self.masquerade, &self.strangers) {
            (None, _) => "the kernel takes tunnels from unknown nodes",
            (_, None) => "pods are not masqueraded",
            _ => "pods are not masqueraded, and the kernel takes tunnels from unknown nodes",
        }
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
