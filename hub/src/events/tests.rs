use serde_json::json;

use super::*;
use crate::testing::Site;

async fn post(site: &Site, actor: &Actor, session: SessionId, n: u64) {
    for i in 0..n {
        site.hub.post_message(actor, session, &i.to_string()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_comes_once_however_slow_the_follower() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let session = site.session(&ann, &[]).await;
    let writers = (0..4).map(|_| post(&site, &ann, session, 150));
    let reader = async {
        let mut follower = site.hub.follow_session(&ann, session, Some(0)).await.unwrap();
        for expected in 1..=600 {
            assert_eq!(follower.next().await.unwrap().unwrap().seq, expected);
            if expected % 100 == 0 {
                // Long enough to fall out of the backlog.
                tokio::time::sleep(std::time::Duration::from_millis(60)).await;
            }
        }
    };
    tokio::join!(futures_util::future::join_all(writers), reader);
}

#[tokio::test]
async fn a_follower_begins_where_it_is_told() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let session = site.session(&ann, &[]).await;
    post(&site, &ann, session, 5).await;
    let mut now = site.hub.follow_session(&ann, session, None).await.unwrap();
    let mut later = site.hub.follow_session(&ann, session, Some(3)).await.unwrap();
    let mut beyond = site.hub.follow_session(&ann, session, Some(99)).await.unwrap();
    post(&site, &ann, session, 1).await;
    assert_eq!(now.next().await.unwrap().unwrap().seq, 6);
    assert_eq!(beyond.next().await.unwrap().unwrap().seq, 6);
    for expected in 4..=6 {
        assert_eq!(later.next().await.unwrap().unwrap().seq, expected);
    }
    // Dropped while it waits, it goes on where it was.
    assert!(futures_util::poll!(Box::pin(later.next())).is_pending());
    post(&site, &ann, session, 1).await;
    assert_eq!(later.next().await.unwrap().unwrap().seq, 7);
    drop((now, later, beyond));
    let site = site.restart().await;
    let mut again = site.hub.follow_session(&ann, session, Some(6)).await.unwrap();
    assert_eq!(again.next().await.unwrap().unwrap().seq, 7);
}

#[tokio::test]
async fn the_hub_wide_feed_shows_each_user_their_own() {
    let site = Site::new().await;
    let (ann, bob) = (site.member("ann").await, site.member("bob").await);
    let mut hers = site.hub.follow(&ann, None).await.unwrap();
    let mut his = site.hub.follow(&bob, Some(0)).await.unwrap();
    let mine = site.session(&ann, &[]).await;
    let theirs = site.session(&bob, &[]).await;
    let next = hers.next().await.unwrap();
    assert_eq!((next.kind.as_str(), &next.data["session_id"]), ("session", &json!(mine)));
    assert_eq!(his.next().await.unwrap().data["session_id"], json!(theirs));
    assert!(futures_util::poll!(Box::pin(hers.next())).is_pending());
    // Resumed after a restart, nothing is missing and nothing comes twice.
    drop((hers, his));
    let site = site.restart().await;
    let mut hers = site.hub.follow(&ann, Some(next.seq)).await.unwrap();
    assert!(futures_util::poll!(Box::pin(hers.next())).is_pending());
    let another = site.session(&ann, &[]).await;
    assert_eq!(hers.next().await.unwrap().data["session_id"], json!(another));
}

#[tokio::test]
async fn the_hub_wide_feed_is_a_bounded_ring() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let user = ann.user;
    let fill =
        move |tx: &mut dyn WriteTx| (0..RING + PAGE as u64 + 50).try_for_each(|i| notify(tx, vec![user], 0, "test", json!(i)).map(drop));
    site.hub.db.write(fill).await.unwrap();
    let rows = site.hub.db.read(|tx| NOTICES.list(tx, &Span::all(), Order::Ascending, usize::MAX)).await.unwrap();
    assert_eq!((rows.len() as u64, rows[0].seq), (RING + 50, PAGE as u64 + 1));
    // Who was away for too long goes on at the oldest row that is left.
    let mut late = site.hub.follow(&ann, Some(3)).await.unwrap();
    for expected in rows[0].seq..1_000 {
        assert_eq!(late.next().await.unwrap().seq, expected);
    }
}

#[tokio::test]
async fn nobody_listening_costs_no_memory() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    for _ in 0..20 {
        let session = site.session(&ann, &[]).await;
        drop(site.hub.follow_session(&ann, session, None).await.unwrap());
        post(&site, &ann, session, 1).await;
    }
    assert!(lock(&site.hub.feeds.sessions).is_empty());
}
