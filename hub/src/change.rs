//! One transaction of the domain: rows, their events, their audit row, and what follows after the commit.
