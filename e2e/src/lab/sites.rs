//! Where a lab's probers send from and to: pods, and a pair of namespaces with nothing but a cable between them.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Lab, Pace, Pod, Prober, helper};

/// Where packets come from and go to: a name, addresses, and the prober's command there.
pub(super) struct Site {
    pub name: String,
    pub ips: Vec<IpAddr>,
    pub command: Command,
}

impl Site {
    pub fn of_pod(pod: &Pod) -> Result<Self> {
        Ok(Self { name: pod.to_string(), ips: pod.ips().to_vec(), command: pod.command(helper("prober")?) })
    }
}

/// left ── right: a veth, and nothing else.
const PLAIN_PAIR: &str = "
    ip netns add left; ip netns add right
    ip -n left link add eth0 type veth peer name eth0 netns right
    ip -n left addr add 192.168.77.1/24 dev eth0; ip -n left link set eth0 up
    ip -n right addr add 192.168.77.2/24 dev eth0; ip -n right link set eth0 up";

impl Lab {
    /// Starts to probe between all pairs of pods, in each family that both have, at 100 packets a
    /// second and pair.
    ///
    /// # Errors
    /// The helper is missing, or a pod is gone.
    pub fn prober(&self, pods: &[&Pod]) -> Result<Prober> {
        self.paced_prober(pods, Pace::default())
    }

    /// Likewise at another pace.
    ///
    /// # Errors
    /// As `prober`.
    pub fn paced_prober(&self, pods: &[&Pod], pace: Pace) -> Result<Prober> {
        let sites = pods.iter().map(|pod| Site::of_pod(pod)).collect::<Result<_>>()?;
        Prober::start(sites, pace, self.folder())
    }

    /// A prober of two namespaces with a plain veth between them: what it loses, the machine has lost. Once a lab.
    ///
    /// # Errors
    /// The helper is missing, or there was one before.
    pub fn plain_prober(&self, pace: Pace) -> Result<Prober> {
        self.control.exec("bash", ["-euc", PLAIN_PAIR])?;
        let sites = [("left", 1), ("right", 2)].map(|(name, host)| {
            let command =
                self.control.command_in(Some(&Path::new("/run/netns").join(name)), helper("prober")?);
            Ok(Site { name: name.to_owned(), ips: vec![[192, 168, 77, host].into()], command })
        });
        Prober::start(sites.into_iter().collect::<Result<_>>()?, pace, self.folder())
    }
}
