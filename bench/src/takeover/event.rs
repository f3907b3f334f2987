//! What may happen to a node's daemons.

use std::fmt;
use std::fs;

use clap::ValueEnum;
use podway_proto::types::Mode;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::stuck::StuckThread;
use crate::podway::{Podway, program};
use crate::topology::Cluster;
use crate::{Error, Result};

/// What happens to the first node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Nothing: what the traffic loses by itself.
    Nothing,
    /// The dataplane is killed (SIGKILL), and started two seconds later.
    Kill,
    /// The dataplane is stopped in an orderly way, and started two seconds later.
    Stop,
    /// The dataplane is stopped in an orderly way and started at once.
    Restart,
    /// The same with another program in its place.
    Upgrade,
    /// The dataplane hangs (SIGSTOP) for two seconds.
    Hang,
    /// A worker is stuck for two seconds; the dataplane's other threads go on.
    StuckWorker,
    /// The pod's port is taken away and added at once.
    Port,
    /// Both nodes are told to reach each other natively, and by tunnel two seconds later.
    Mode,
    /// Control is killed, and started two seconds later.
    KillControl,
}

/// What ends an event.
pub(super) enum Undo {
    Nothing,
    StartDataplane,
    StartControl,
    GoOn,
    /// Dropping it is all.
    Release(#[expect(dead_code, reason = "held until it is dropped")] StuckThread),
    Tunnel,
}

impl Event {
    /// Makes it happen.
    pub(super) fn happen(self, cluster: &Cluster, podway: &mut Podway) -> Result<Undo> {
        let agent = podway.agent_mut(0);
        match self {
            Self::Nothing => return Ok(Undo::Nothing),
            Self::Kill => agent.kill_dataplane()?,
            Self::Stop => agent.stop_dataplane()?,
            Self::Restart => {
                agent.stop_dataplane()?;
                agent.start_dataplane()?;
                return Ok(Undo::Nothing);
            }
            Self::Upgrade => {
                let other = cluster.nodes()[0].directory.join("podway-dataplane.new");
                fs::copy(program("podway-dataplane")?, &other)
                    .map_err(Error::io("copy the dataplane"))?;
                agent.stop_dataplane()?;
                agent.start_dataplane_of(&other)?;
                return Ok(Undo::Nothing);
            }
            Self::Hang => {
                agent.signal_dataplane(Signal::STOP)?;
                return Ok(Undo::GoOn);
            }
            Self::StuckWorker => {
                let thread = StuckThread::stop(agent.dataplane_pid()?, "worker-0")?;
                return Ok(Undo::Release(thread));
            }
            Self::Port => {
                let pod = cluster.pod(0, 0);
                agent.cli(&["port", "del", &pod.host_interface])?;
                agent.add_pod_port(pod)?;
                return Ok(Undo::Nothing);
            }
            Self::Mode => {
                podway.tell_mode(cluster, Mode::Native)?;
                return Ok(Undo::Tunnel);
            }
            Self::KillControl => {
                agent.kill_control()?;
                return Ok(Undo::StartControl);
            }
        }
        Ok(Undo::StartDataplane)
    }
}

impl Undo {
    /// Ends the event.
    pub(super) fn run(self, cluster: &Cluster, podway: &mut Podway) -> Result<()> {
        let agent = podway.agent_mut(0);
        match self {
            Self::Nothing | Self::Release(_) => Ok(()),
            Self::StartDataplane => agent.start_dataplane(),
            Self::StartControl => agent.start_control(),
            Self::GoOn => agent.signal_dataplane(Signal::CONT),
            Self::Tunnel => podway.tell_mode(cluster, Mode::Vxlan),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nothing => "nothing",
            Self::Kill => "dataplane killed",
            Self::Stop => "dataplane stopped",
            Self::Restart => "dataplane restarted",
            Self::Upgrade => "dataplane replaced",
            Self::Hang => "dataplane hangs (SIGSTOP)",
            Self::StuckWorker => "one worker is stuck",
            Self::Port => "port removed and added",
            Self::Mode => "to native and back",
            Self::KillControl => "control killed",
        })
    }
}
