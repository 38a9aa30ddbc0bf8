//! Where another node is reached: the addresses that its Node names, and which of them may be used.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use crate::{
    EndpointSource, EndpointSpec, Reason, Resolved, Settings, Underlay,
    claim::{Claim, first_of_each_family},
    prefix::is_routable,
};

/// What an endpoint is measured by.
#[derive(Clone, Copy)]
pub(crate) struct Reach<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) underlay: &'a Underlay,
}

impl Reach<'_> {
    /// Where a peer is reached: what a person wrote, else an InternalIP, else an ExternalIP.
    /// `None` while what a person wrote has no answer, or none that this node has a route to.
    pub(crate) fn endpoint(
        &self,
        claim: &Claim,
        resolved: &Resolved,
    ) -> Result<Option<(SocketAddr, EndpointSource)>, Reason> {
        if let Some(spec) = &claim.endpoint {
            let ips = match spec {
                EndpointSpec::Address(ip, _) => std::slice::from_ref(ip),
                EndpointSpec::Name(name, _) => resolved.get(name).map(Vec::as_slice).unwrap_or_default(),
            };
            let ip = self.first_usable(ips)?;
            let port = spec.port().unwrap_or(claim.listen_port);
            return Ok(ip.map(|ip| (SocketAddr::new(ip, port), EndpointSource::Annotated)));
        }
        let mut fault = Reason::NoEndpoint;
        for (ips, source) in
            [(&claim.internal_ips, EndpointSource::Internal), (&claim.external_ips, EndpointSource::External)]
        {
            match self.first_usable(ips) {
                Ok(Some(ip)) => return Ok(Some((SocketAddr::new(ip, claim.listen_port), source))),
                Ok(None) => {}
                Err(reason) => fault = reason,
            }
        }
        Err(fault)
    }

    /// The first address that may be used and that this node has a route to; an error where one may not be used and
    /// no other is left.
    fn first_usable(&self, ips: &[IpAddr]) -> Result<Option<IpAddr>, Reason> {
        let mut fault = None;
        for ip in ips.iter().copied().filter(is_routable) {
            if self.is_in_tunnel(ip) {
                fault = Some(Reason::EndpointInTunnel(ip));
            } else if self.underlay.link_of(&ip).is_some() {
                fault = Some(Reason::EndpointIsOwn(ip));
            } else if self.underlay.link_to(&ip).is_some() {
                return Ok(Some(ip));
            }
        }
        fault.map_or(Ok(None), Err)
    }

    /// The sockets of a Node that pods may not send to: where it may be reached by what it says itself, of each kind of
    /// address the first of a family, as a Node may name any number. A privileged port that isn't the cluster's own is
    /// left out: a Node that published 53 with a name server's address would cut every pod off from it.
    pub(crate) fn guarded(&self, claim: &Claim) -> BTreeSet<SocketAddr> {
        let port = claim.listen_port;
        let of_each = |ips: &'_ [IpAddr]| first_of_each_family(ips.iter().copied()).collect::<Vec<_>>();
        let ips = of_each(&claim.internal_ips).into_iter().chain(of_each(&claim.external_ips));
        let annotated = match &claim.endpoint {
            Some(EndpointSpec::Address(ip, written)) => Some(SocketAddr::new(*ip, written.unwrap_or(port))),
            _ => None,
        };
        let sockets = ips.filter(is_routable).map(|ip| SocketAddr::new(ip, port)).chain(annotated);
        let harmless = |s: &SocketAddr| s.port() >= 1024 || s.port() == self.settings.listen_port;
        sockets.filter(|s| harmless(s) && !self.is_in_tunnel(s.ip())).collect()
    }

    fn is_in_tunnel(&self, ip: IpAddr) -> bool {
        let tunnelled = self.settings.cluster_cidrs.iter().chain(&self.settings.overlay_cidrs);
        tunnelled.into_iter().any(|net| net.contains(&ip))
    }
}
