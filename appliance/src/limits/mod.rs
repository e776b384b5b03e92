//! What every agent and every group may hold at once and do in a second.

mod agent_table;
mod coded;
mod fair;
mod pace;
mod places;

pub use self::{
    agent_table::{AgentTable, MAX_AGENTS},
    coded::{Coded, CodedAnswers, CodedPlace},
    fair::{FairPlace, FairPlaces},
    pace::Pace,
    places::{
        LargeDecoder, OverRate, Place, Places, Rated, RequestPlace, Room, Share, Taken, Way,
        Windows, held,
    },
};
