//! A way to a server that can break without telling anybody: what is sent goes nowhere, and nothing comes.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use url::Url;

/// Gone with all its connections when it is dropped.
pub struct Relay {
    address: SocketAddr,
    /// Whether it is broken.
    broken: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// A way to the server of this URL.
    pub async fn to(server: &Url) -> Result<Self> {
        let host = server.host_str().context("a host")?;
        let port = server.port_or_known_default().unwrap_or(5432);
        let target = format!("{host}:{port}");
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (broken, state) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(relay(client, target.clone(), state.clone()));
            }
        });
        Ok(Self { address, broken, _tasks: tasks })
    }

    /// The URL with this way in the server's place.
    pub fn url(&self, server: &Url) -> Result<Url> {
        let mut url = server.clone();
        url.set_host(Some(&self.address.ip().to_string()))?;
        url.set_port(Some(self.address.port())).ok().context("a port")?;
        Ok(url)
    }

    /// From now on nothing gets through, and nobody is told.
    pub fn break_off(&self) {
        self.broken.send_replace(true);
    }

    /// From now on new connections get through. What broke stays so.
    pub fn mend(&self) {
        self.broken.send_replace(false);
    }
}

async fn relay(mut client: TcpStream, target: String, mut broken: watch::Receiver<bool>) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    tokio::select! {
        biased;
        _ = broken.wait_for(|broken| *broken) => {}
        _ = copy_bidirectional(&mut client, &mut server) => return,
    }
    // Neither end hears that the other is gone.
    std::future::pending().await
}
