//! Who is refused at the door of the link, by whom, and with which reason: the handshakes of QUIC in both directions.
