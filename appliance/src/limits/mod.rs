//! What every agent and every group may hold at once and do in a second.

mod agent_table;
mod fair;
mod pace;
mod places;

pub use self::{
    agent_table::{AgentTable, MAX_AGENTS},
    fair::{FairPlace, FairPlaces},
    pace::Pace,
    places::{
        OverRate, Place, Places, Rated, RequestPlace, Room, Share, Taken, Way, Windows, held,
    },
};
