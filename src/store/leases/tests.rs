use chrono::TimeDelta;
use futures_util::future::join_all;

use super::*;
use crate::{
    clock::Clock,
    store::testing::{PATIENCE, TestDatabase, database},
};

const LEASE: Duration = Duration::from_mins(1);

async fn announce(database: &TestDatabase) -> Process {
    let now = Clock::system().now();
    Process::announce(&database.store, LEASE, now).await.expect("announces")
}

/// How many shards it has after this, and whether it found that something was lost.
async fn renew(process: &mut Process, ahead: TimeDelta) -> (usize, bool) {
    let now = Clock::system().now() + ahead;
    let renewal = process.renew(LEASE, now).await.expect("renews");
    (renewal.fences.len(), renewal.is_after_outage)
}

async fn outage(database: &TestDatabase) -> String {
    database.text("SELECT CONCAT(reconcile_before, ' ', device_epoch) FROM homeserver_state").await
}

/// Nothing was heard of it for an hour.
async fn stand_still(database: &TestDatabase, process: &Process) {
    let id = process.id;
    let still = format!(
        "UPDATE processes SET seen_at = seen_at - INTERVAL '1 hour' WHERE process_id = '{id}';
        UPDATE shards SET expires_at = expires_at - INTERVAL '61 seconds' WHERE owner = '{id}'"
    );
    database.execute(&still).await;
}

#[tokio::test]
async fn of_several_that_start_at_once_one_declares_the_outage() {
    let database = database().await;
    for round in 0..5 {
        let before = outage(&database).await;
        let all = join_all((0..6).map(|_| announce(&database))).await;
        assert_eq!(all.iter().filter(|one| one.is_first).count(), 1, "round {round}");
        assert_ne!(outage(&database).await, before, "round {round}");
        for process in all {
            process.leave().await.expect("leaves");
        }
    }
}

#[tokio::test]
async fn a_death_is_noticed_once_and_a_farewell_is_none() {
    let database = database().await;
    let mut stays = announce(&database).await;
    let (leaves, dies) = (announce(&database).await, announce(&database).await);
    assert_eq!(renew(&mut stays, TimeDelta::zero()).await, (22, false));
    leaves.leave().await.expect("leaves");
    assert_eq!(renew(&mut stays, TimeDelta::zero()).await, (32, false));

    let before = outage(&database).await;
    drop(dies);
    let noticed = async {
        while !renew(&mut stays, TimeDelta::zero()).await.1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.expect("notices");
    let after = outage(&database).await;
    assert_ne!(after, before);
    assert_eq!(renew(&mut stays, TimeDelta::zero()).await, (64, false));
    assert_eq!(outage(&database).await, after);
}

#[tokio::test]
async fn who_stood_still_is_noticed_by_another_and_by_itself() {
    let database = database().await;
    let (mut one, mut other) = (announce(&database).await, announce(&database).await);
    assert_eq!(renew(&mut one, TimeDelta::zero()).await, (32, false));
    assert_eq!(renew(&mut other, TimeDelta::zero()).await, (32, false));
    stand_still(&database, &one).await;
    assert_eq!(renew(&mut other, TimeDelta::zero()).await, (64, true));
    let before = outage(&database).await;
    assert_eq!(renew(&mut one, TimeDelta::zero()).await, (0, true));
    assert_ne!(outage(&database).await, before);
    assert_eq!(renew(&mut one, TimeDelta::zero()).await, (0, false));
}

/// The one's clock is an hour ahead, the other's an hour behind.
#[tokio::test]
async fn clocks_that_differ_decide_nothing() {
    let database = database().await;
    let (mut fast, mut slow) = (announce(&database).await, announce(&database).await);
    let (ahead, behind) = (TimeDelta::hours(1), TimeDelta::hours(-1));
    for _ in 0..2 {
        assert_eq!(renew(&mut fast, ahead).await, (32, false));
        assert_eq!(renew(&mut slow, behind).await, (32, false));
    }
    stand_still(&database, &fast).await;
    assert_eq!(renew(&mut slow, behind).await, (64, true));
}

#[tokio::test]
async fn one_that_is_stopping_takes_nothing_in() {
    let database = database().await;
    let (mut stops, second) = (announce(&database).await, announce(&database).await);
    assert!(!second.is_first);
    second.leave().await.expect("leaves");
    stops.stopping().await.expect("tells");
    assert!(announce(&database).await.is_first);
}
