//! Peer and hub behind routers of their own, which reach each other through the relay only.

use anyhow::Result;
use cortex_tests::net::Lab;

#[tokio::test]
async fn a_lab_is_built() -> Result<()> {
    let lab = Lab::build().await?;
    lab.cut_udp()?;
    lab.heal_udp()?;
    lab.rebind_ports()?;
    lab.rebind_address()?;
    Ok(())
}
