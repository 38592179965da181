//! Who connects: which peers speak for others, and how many connections each of the others has.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;

/// The peers of one listener; cheap to clone, and all clones are one.
#[derive(Clone, Debug)]
pub struct Peers {
    proxies: Arc<[IpNet]>,
    most: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A connection's place among those of its peer, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Option<(Peers, IpAddr)>);

impl Peers {
    /// Believes `proxies` about whom they speak for, and gives everybody else `most` connections at a
    /// time.
    #[must_use]
    pub fn new(proxies: &[IpNet], most: usize) -> Self {
        Self { proxies: proxies.into(), most, open: Arc::default() }
    }

    /// A place for one more connection of `peer`; `None` if it has enough. Proxies are not counted:
    /// theirs are the connections of many.
    pub(super) fn enter(&self, peer: IpAddr) -> Option<Place> {
        if self.is_proxy(peer) {
            return Some(Place(None));
        }
        let network = network(peer);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.get(&network).copied().unwrap_or_default();
        if count >= self.most {
            return None;
        }
        open.insert(network, count + 1);
        Some(Place(Some((self.clone(), network))))
    }

    /// Whether what `peer` says about whom it speaks for is believed.
    pub(super) fn is_proxy(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.proxies.iter().any(|proxies| proxies.contains(&peer))
    }

    fn leave(&self, network: IpAddr) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(&network) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.remove(&network)),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((peers, network)) = self.0.take() {
            peers.leave(network);
        }
    }
}

/// What counts as one client: an address; of IPv6 the first 64 bits, which is what one customer is
/// given.
pub(super) fn network(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V4(addr) => IpAddr::V4(addr),
        IpAddr::V6(addr) => IpAddr::V6((addr.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_so_many_places_and_a_proxy_has_all() {
        let addr = |text: &str| text.parse::<IpAddr>().expect("an address");
        let peers = Peers::new(&["127.0.0.0/8".parse().expect("a network")], 2);
        let (one, neighbour) = (addr("2001:db8::1"), addr("2001:db8::2"));
        let (first, second) = (peers.enter(one), peers.enter(neighbour));
        assert!(first.is_some() && second.is_some());
        assert!(peers.clone().enter(one).is_none(), "a third from one network");
        assert!(peers.enter(addr("2001:db8:0:1::1")).is_some(), "another network");
        let many: Vec<_> = (0..10).map(|_| peers.enter(addr("::ffff:127.0.0.1"))).collect();
        assert!(many.iter().all(Option::is_some));

        drop(first);
        assert!(peers.enter(one).is_some(), "a place is free again");
        drop(second);
        assert!(peers.open.lock().expect("it is free").is_empty(), "who is gone is forgotten");
    }
}
