use super::*;
use crate::testing::{START_MS, Site};

async fn chain(rows: u64) -> (Site, Actor) {
    let site = Site::new().await;
    let admin = site.admin().await;
    let keys = site.hub.keys.clone();
    let write = move |tx: &mut dyn WriteTx| {
        (0..rows).try_for_each(|i| {
            let object = format!("test:{i}");
            append(tx, &keys, START_MS, Act { actor: "hub", verb: "test", object: &object, detail: b"secret" })
        })
    };
    site.hub.db.write(write).await.unwrap();
    (site, admin)
}

/// Lets somebody with a hex editor at the chain, and says where it is seen.
async fn tampered(tamper: impl Fn(&mut dyn WriteTx) -> Result<(), StoreError> + Send + 'static) -> Option<(u64, String)> {
    let (site, admin) = chain(1_005).await;
    assert_eq!(site.hub.verify_audit(&admin).await.unwrap(), AuditVerdict { rows: 1_005, checkpoints: 1, broken: None });
    site.hub.db.write(tamper).await.unwrap();
    site.hub.verify_audit(&admin).await.unwrap().broken
}

fn edit(tx: &mut dyn WriteTx, seq: u64, edit: impl FnOnce(&mut AuditRow)) -> Result<(), StoreError> {
    let mut row = AUDIT.get(tx, &seq)?.unwrap();
    edit(&mut row);
    AUDIT.put(tx, &seq, &row)
}

#[tokio::test]
async fn a_changed_row_is_found() {
    for change in [
        |row: &mut AuditRow| row.actor = "user:x".into(),
        |row: &mut AuditRow| row.verb = "tes".into(),
        |row: &mut AuditRow| row.object.push('x'),
        |row: &mut AuditRow| row.at_ms += 1,
        |row: &mut AuditRow| row.digest = Digest([1; 32]),
        |row: &mut AuditRow| row.hash = Digest([1; 32]),
        |row: &mut AuditRow| {
            // What moves from one field into the next is a change, too.
            row.object = format!("{}{}", row.verb, row.object);
            row.verb = String::new();
        },
    ] {
        assert_eq!(tampered(move |tx| edit(tx, 500, change)).await.map(|broken| broken.0), Some(500));
    }
}

#[tokio::test]
async fn a_removed_row_is_found() {
    let broken = tampered(|tx| AUDIT.delete(tx, &500)).await;
    assert_eq!(broken, Some((500, "the row is missing".into())));
    assert_eq!(tampered(|tx| AUDIT.delete(tx, &1)).await.map(|broken| broken.0), Some(1));
}

#[tokio::test]
async fn a_chain_made_anew_does_not_hold_its_checkpoint() {
    let broken = tampered(|tx| {
        let mut before = Digest([0; 32]);
        for seq in 1..=1_005 {
            edit(tx, seq, |row| {
                row.object = "nothing to see".into();
                row.hash = link(before, row);
                before = row.hash;
            })?;
        }
        Ok(())
    });
    let (seq, why) = broken.await.unwrap();
    assert_eq!((seq, why.as_str()), (1_000, "the checkpoint is not signed by the hub's audit key"));
    let broken = tampered(|tx| edit(tx, 1_000, |row| row.signature = None)).await;
    assert_eq!(broken, Some((1_000, "the checkpoint's signature is missing".into())));
}

#[tokio::test]
async fn what_was_done_is_hashed_and_not_told() {
    let (site, admin) = chain(3).await;
    let rows = site.hub.audit_rows(&admin, Some(1), Order::Ascending, 1).await.unwrap();
    assert_eq!((rows.len(), rows[0].seq), (1, 2));
    assert!(!serde_json::to_string(&rows).unwrap().contains("secret"));
    assert_eq!(rows[0].digest, Digest(blake3::hash(b"secret").into()));
}
