//! The composition root: puts the parts together, starts them, and stops them in order.
//!
//! Three listeners, the supervisor, the committer and the ear for notifications run until the process
//! is told to stop (SIGTERM or ctrl-c). Then listeners take nothing new, running steps end, and the
//! leases are let go. If any part ends by itself, the others are stopped too and the process fails: a
//! half-alive greenshield helps nobody.

mod contact;

use std::{pin::pin, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::Router;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::contact::Contact;
use crate::{
    appservice::{self, AppserviceState, Refusals},
    clock::Clock,
    config::Config,
    homeserver::Homeserver,
    model::Respond,
    openapi,
    operator::{self, Operator, Readiness},
    registration::{self, Registration},
    responder,
    signup::{self, Signup},
    store::{Committer, Signals, Store, leases::Process},
    telemetry::Metrics,
    web::{self, Peers, kit, kit::Bounds},
    worker::{Context, InFlight, Pace, Settings, Supervisor},
};

/// How long a transaction may take: the homeserver gives up after a minute.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(55);
/// How long any other request may take: longer than a signup waits.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);
/// Connections of strangers: few enough that, where a process may have 1024 files open, the other
/// listeners, the database and the homeserver have theirs.
const PUBLIC_CONNECTIONS: usize = 512;
/// Those of one stranger.
const PEER_CONNECTIONS: usize = 32;
/// Connections of the homeserver, or of an operator's tools.
const PRIVATE_CONNECTIONS: usize = 64;
/// How long a client of these may say nothing.
const IDLE: Duration = Duration::from_secs(20);
/// How long the homeserver may: Synapse keeps a connection for up to four minutes, and a transaction on
/// one that we close at that moment would count as refused.
const HOMESERVER_IDLE: Duration = Duration::from_secs(300);
/// How long anybody may take to read an answer: none is large.
const TAKEN: Duration = Duration::from_secs(30);
/// How old a connection gets that is never idle; others wait for its place. The homeserver's may stay.
const LIFE: Duration = Duration::from_secs(60);

/// Serves until `told`, which is [`told_to_stop`] from the start of the process.
///
/// # Errors
///
/// If a listener cannot be opened, or a part ends by itself.
pub async fn serve(
    config: Config,
    registration: Registration,
    store: Store,
    told: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let serving = serve_until(config, registration, store, responder::answer, stop.clone());
    let mut serving = pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = told => stop.cancel(),
    }
    serving.await
}

/// As [`serve`], until `stop`, with another responder than our own.
///
/// # Errors
///
/// As [`serve`].
pub async fn serve_until(
    config: Config,
    registration: Registration,
    store: Store,
    respond: Respond,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let clock = Clock::system();
    let signals = Signals::default();
    let metrics = Metrics::install()?;
    let (readiness, refusals) = (Readiness::default(), Refusals::default());
    let at = &config.homeserver;
    let homeserver = Homeserver::new(&at.url, registration.as_token.clone(), at.timeout)?;

    let listeners = Listeners::open(&config).await?;
    let process = Process::announce(&store, config.workers.lease, clock.now()).await?;
    let was_away = process.is_first;
    let (committer, commits) = Committer::new(store.clone(), signals.clone(), clock.clone());
    let context = Context {
        store: store.clone(),
        homeserver: homeserver.clone(),
        clock: clock.clone(),
        committer,
        in_flight: Arc::new(InFlight::default()),
        pace: Arc::new(Pace::default()),
        settings: Arc::new(settings(&config, respond)?),
    };
    let appservice = appservice::router(AppserviceState {
        store: store.clone(),
        signals: signals.clone(),
        clock: clock.clone(),
        hs_token: registration.hs_token.clone(),
        refusals: refusals.clone(),
    });
    let public =
        signup::router(Signup::new(&config, store.clone(), signals.clone(), clock.clone()))
            .merge(web::openapi::router(openapi::document()));
    let operator =
        operator::router(Operator::new(store.clone(), metrics.clone(), readiness.clone()));
    let limit = config.limits.request_body_bytes;

    let mut parts = Parts { running: JoinSet::new(), stop: stop.clone() };
    parts.listener(
        "appservice",
        listeners.appservice,
        appservice,
        Bounds {
            listener: "appservice",
            body_bytes: config.limits.transaction_body_bytes,
            timeout: TRANSACTION_TIMEOUT,
            connections: PRIVATE_CONNECTIONS,
            idle: HOMESERVER_IDLE,
            taken: TAKEN,
            life: None,
        },
        Peers::new(&[], PRIVATE_CONNECTIONS),
    );
    let bounds = |listener, connections| Bounds {
        listener,
        body_bytes: limit,
        timeout: REQUEST_TIMEOUT,
        connections,
        idle: IDLE,
        taken: TAKEN,
        life: Some(LIFE),
    };
    let strangers = Peers::new(&config.public.trusted_proxies, PEER_CONNECTIONS);
    let at = bounds("public", PUBLIC_CONNECTIONS);
    parts.listener("public", listeners.public, public, at, strangers);
    let peers = Peers::new(&[], PRIVATE_CONNECTIONS);
    let at = bounds("operator", PRIVATE_CONNECTIONS);
    parts.listener("operator", listeners.operator, operator, at, peers);
    parts.task("notifications", signals.clone().listen(store.pool().clone(), stop.clone()));
    parts.task("metrics", metrics.upkeep(stop.clone()));
    parts.task("commits", commits);
    let supervisor = Supervisor::new(context, signals, process, refusals.news());
    parts.task("supervisor", supervisor.run(stop.clone()));
    let appservice_id = registration.id.clone();
    let contact =
        Contact { homeserver, appservice_id, was_away, readiness, refusals, store, clock };
    parts.task("contact", contact.keep(stop));
    info!(
        appservice = %config.appservice.listen,
        public = %config.public.listen,
        operator = %config.operator.listen,
        "serving"
    );
    parts.wait().await
}

fn settings(config: &Config, respond: Respond) -> anyhow::Result<Settings> {
    let server_name = &config.homeserver.server_name;
    Ok(Settings {
        concurrency: config.workers.concurrency,
        machine_cache: config.workers.machine_cache_mib * 1024 * 1024,
        lease: config.workers.lease,
        server_name: server_name.clone(),
        invite_policy: config.bots.invite_policy,
        invite_allow: config.bots.invite_allow.clone(),
        space: config.signup.space.clone(),
        rooms: config.signup.rooms.clone(),
        respond: config.bots.responder.then_some(respond),
        namespace: registration::bots(&config.bots.localpart_prefix, server_name.as_str())
            .context("`bots.localpart_prefix`")?,
    })
}

/// Until the process is told to stop, by SIGTERM or ctrl-c. Of a signal that comes before this is first
/// polled, or after it is dropped, nobody hears.
pub async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        warn!("cannot listen for SIGTERM");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    info!("told to stop");
}

/// The three listeners, all opened before anything is started.
struct Listeners {
    appservice: TcpListener,
    public: TcpListener,
    operator: TcpListener,
}

impl Listeners {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        let open = async |key: &str, address: std::net::SocketAddr| {
            TcpListener::bind(address).await.with_context(|| {
                format!("cannot listen on {address}: change `{key}` in {}", config.path.display())
            })
        };
        Ok(Self {
            appservice: open("appservice.listen", config.appservice.listen).await?,
            public: open("public.listen", config.public.listen).await?,
            operator: open("operator.listen", config.operator.listen).await?,
        })
    }
}

/// What runs, each part with its name.
struct Parts {
    running: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl Parts {
    fn listener(
        &mut self,
        name: &'static str,
        listener: TcpListener,
        router: Router,
        bounds: Bounds,
        peers: Peers,
    ) {
        let router = kit::finish(router, bounds);
        let served = web::serve(listener, router, bounds, peers, self.stop.clone());
        self.task(name, served);
    }

    /// A part that must not end before it is told to.
    fn task(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until everything has ended; the first part that ends too early takes the others along.
    async fn wait(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.running.join_next().await {
            let early = !self.stop.is_cancelled();
            self.stop.cancel();
            let ended = match ended {
                Ok(name) if early => Err(anyhow::anyhow!("{name} ended by itself")),
                Ok(_) => Ok(()),
                // Not with the error: it quotes what the panic says.
                Err(_) => Err(anyhow::anyhow!("a part of greenshield panicked: see the log")),
            };
            if result.is_ok() {
                result = ended;
            }
        }
        result
    }
}
