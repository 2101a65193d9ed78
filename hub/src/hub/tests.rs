use super::*;
use crate::testing::Site;

#[tokio::test]
async fn two_hubs_do_not_share_a_data_directory() {
    let site = Site::new().await;
    let second = Hub::open(site.path(), HubOptions::default()).await;
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    let id = site.hub.id();
    assert_eq!(site.restart().await.hub.id(), id);
}

#[tokio::test]
async fn readiness_is_a_round_trip() {
    let site = Site::new().await;
    site.hub.check_store().await.unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn only_its_owner_reads_the_data_directory() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("a/b");
    let hub = Hub::open(&data, HubOptions::default()).await.unwrap();
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(hub.data_dir(), data);
}
