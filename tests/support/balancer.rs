//! haproxy, with the very configuration that `docs/OPERATIONS.md` gives.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{
    greenshield::Greenshield,
    installed, ports,
    process::{Guarded, Output},
    scratch::Scratch,
};

const PAGE: &str = include_str!("../../docs/OPERATIONS.md");

pub struct Balancer {
    appservice: u16,
    public: u16,
    process: Option<Guarded>,
    /// After the process, as everywhere.
    dir: Scratch,
}

impl Balancer {
    /// A balancer that does not run yet, but already has its addresses.
    pub fn prepare() -> Result<Self> {
        let dir = Scratch::new("haproxy")?;
        Ok(Self { appservice: ports::free(), public: ports::free(), process: None, dir })
    }

    /// Starts it before these two.
    pub fn start(&mut self, servers: [&Greenshield; 2]) -> Result<()> {
        let config = self.dir.path().join("haproxy.cfg");
        fs::write(&config, self.config(servers)?)?;
        let mut program = Command::new(installed::haproxy()?);
        program.arg("-db").arg("-f").arg(&config);
        let log = self.dir.path().join("haproxy.log");
        self.process = Some(Guarded::start("haproxy", &program, &log, Output::Log)?);
        Ok(())
    }

    /// What the page says, with the addresses of this test.
    fn config(&self, servers: [&Greenshield; 2]) -> Result<String> {
        let (_, config) = PAGE.split_once("```text\n# haproxy.cfg").context("no haproxy.cfg")?;
        let (config, _) = config.split_once("```").context("the block's end")?;
        let mut config = format!("# haproxy.cfg{config}");
        let mut replace = |old: &str, new: &str| {
            ensure!(config.contains(old), "no {old} in the haproxy.cfg of docs/OPERATIONS.md");
            config = config.replace(old, new);
            Ok(())
        };
        replace("127.0.0.1:29400", &format!("127.0.0.1:{}", self.appservice))?;
        replace("127.0.0.1:29401", &format!("127.0.0.1:{}", self.public))?;
        for (host, server) in ["10.0.0.1", "10.0.0.2"].into_iter().zip(servers) {
            // On the page all have the same ports; here each has its own for the checks, too.
            let operator = server.operator_url();
            let (_, checked) = operator.rsplit_once(':').context("a port")?;
            for (port, url) in [(29400, server.appservice_url()), (29401, server.public_url())] {
                let address = url.trim_start_matches("http://");
                replace(&format!("{host}:{port}"), &format!("{address} port {checked}"))?;
            }
        }
        Ok(config)
    }

    /// What the homeserver is told.
    pub fn appservice_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.appservice)
    }

    /// Where people sign bots up.
    pub fn public_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.public)
    }
}
