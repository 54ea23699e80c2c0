//! The search: from what is known so far to the next wave, and to what it all comes to.

use super::closer::{self, Closer};
use super::evidence::{Evidence, OPEN, SUSPECT};
use super::leaves::Leaves;
use super::paths::Paths;
use super::survey::Survey;
use super::{
    Cause, Conclusion, Finding, Gone, Group, Layout, Node, NodeFinding, Outcome, PathFinding,
    Purpose, Random, Settings, Step, Verdict, parts, suspects,
};

/// How often the nodes are parted anew while no part passes, before all are taken to be alike.
const PARTINGS_MAX: usize = 3;

/// How often closing tests may fail, without a node being found after them, before the paths between nodes are looked at;
/// and where there are too many paths to look at.
const CLOSINGS_MAX: u32 = 2;
const CLOSINGS_MAX_LARGE: u32 = 4;

/// Up to so many nodes every pair is tried where neither nodes nor parts explain a failure: n − 1 waves at most.
const ALL_PAIRS_MAX: usize = 32;

/// How often a wave may tell nothing at all before the search ends.
const BLIND_MAX: usize = 2;

/// A search under way.
#[derive(Clone, Debug)]
pub struct Search {
    settings: Settings,
    layout: Layout,
    random: Random,
    evidence: Evidence,
    waves: usize,
    asked: Vec<Group>,
    partings: usize,
    /// A closing test has just failed: somebody is hiding, and everybody is looked at again.
    reopened: bool,
    blind: usize,
    /// The paths between good nodes, once they are looked at.
    paths: Option<Paths>,
    /// The way between the leaves, once it is looked at.
    leaves: Option<Leaves>,
    leaves_told: bool,
    /// The rails of all nodes, once they are looked at.
    survey: Option<Survey>,
    /// What is accused, once that is known.
    closer: Option<Closer>,
    /// Whether there is nothing to look at more closely, since what is searched are no nodes.
    is_abstract: bool,
    closer_waves: usize,
    done: Option<Conclusion>,
}

impl Search {
    /// A search among `nodes` nodes of which nothing is known.
    pub fn new(nodes: usize, settings: Settings) -> Search {
        // One node in two clusters, within what fleets report.
        let prior = (0.5 / nodes.max(1) as f64).clamp(5e-4, 0.02);
        Search::with_priors(vec![prior; nodes], settings)
    }

    /// A search among nodes that are faulty with these probabilities, as their history suggests.
    pub fn with_priors(priors: Vec<f64>, settings: Settings) -> Search {
        Search {
            random: Random::new(settings.seed),
            evidence: Evidence::new(priors, settings.rates),
            settings: Settings {
                // One group for the suspects and one for the closing test beside them.
                groups_max: settings.groups_max.max(2),
                ..settings
            },
            layout: Layout::default(),
            waves: 0,
            asked: Vec::new(),
            partings: 0,
            reopened: false,
            blind: 0,
            paths: None,
            leaves: None,
            leaves_told: false,
            survey: None,
            closer: None,
            is_abstract: false,
            closer_waves: 0,
            done: None,
        }
    }

    /// The same search in a network of which so much is known. Leaves count only if every node has one.
    pub fn within(self, layout: Layout) -> Search {
        let evidence = self.evidence.under(layout.leaves);
        Search {
            layout: Layout {
                leaves: evidence.leaves().cloned(),
                ..layout
            },
            evidence,
            ..self
        }
    }

    /// The same search among what stands for several nodes each, and has no cards of its own.
    pub(super) fn of_abstractions(self) -> Search {
        Search {
            is_abstract: true,
            ..self
        }
    }

    /// How many waves were told so far that looked for nodes, paths and leaves.
    pub fn waves(&self) -> usize {
        self.waves
    }

    /// How many waves were told so far that looked more closely at what had been found.
    pub fn closer_waves(&self) -> usize {
        self.closer_waves
    }

    /// What to measure next. Asked again before [`Search::tell`], the answer is the same.
    pub fn step(&mut self) -> Step {
        if self.asked.is_empty() && self.done.is_none() {
            match self.plan() {
                // Nobody is left whom the open nodes could be measured with.
                Ok(groups) if groups.is_empty() => self.done = Some(self.evidence.conclusion()),
                Ok(groups) => self.asked = groups,
                Err(conclusion) => self.done = Some(self.or_what_is_found(conclusion)),
            }
        }
        if self.asked.is_empty()
            && let Some(conclusion) = self.done
        {
            self.asked = self.look_closer(conclusion);
        }
        if self.asked.is_empty() {
            return Step::Done;
        }
        Step::Wave(self.asked.clone())
    }

    /// Takes in what the groups of the last wave turned out to be, in the order in which they were asked for. An outcome
    /// that is missing is unknown.
    pub fn tell(&mut self, outcomes: &[Outcome]) {
        let asked = std::mem::take(&mut self.asked);
        let mut outcomes = outcomes.to_vec();
        outcomes.resize(asked.len(), Outcome::Unknown);
        if let Some(closer) = &mut self.closer {
            closer.tell(&outcomes);
            self.closer_waves += 1;
            return;
        }
        if let Some(survey) = &mut self.survey {
            survey.tell(&outcomes);
            self.closer_waves += 1;
            return;
        }
        self.waves += 1;
        let said_something = outcomes.iter().any(|outcome| *outcome != Outcome::Unknown);
        self.blind = if said_something { 0 } else { self.blind + 1 };
        if let Some(leaves) = self.leaves.as_mut().filter(|_| !self.leaves_told) {
            leaves.tell(&outcomes);
            return;
        }
        for (group, outcome) in asked.iter().zip(&outcomes) {
            self.evidence.take(group, outcome);
            if let Some(paths) = &mut self.paths {
                paths.take(group, outcome);
            }
            if group.purpose == Purpose::Closing && outcome.failed() == Some(true) {
                self.reopened = true;
            }
        }
    }

    /// From now on this node cannot be measured. Told after the groups of a wave, or before the first one, once or every time.
    pub fn lose(&mut self, node: Node, gone: Gone) {
        if self.evidence.lose(node, gone) {
            self.blind = 0;
        }
    }

    /// The groups of the next wave, or what is known if there is none to be had.
    fn plan(&mut self) -> Result<Vec<Group>, Conclusion> {
        if self.evidence.all().len() < 2 || self.blind >= BLIND_MAX {
            return Err(Conclusion::NotKnown);
        }
        if self.waves >= self.settings.waves_max && self.paths.is_none() {
            return Err(self.evidence.conclusion());
        }
        let active = self.evidence.active();
        if active.len() < 2 {
            return Err(self.evidence.conclusion());
        }
        if self.waves == 0 {
            return Ok(vec![Group::new(active, Purpose::Whole)]);
        }
        if self.partings == 0 || self.evidence.lacks_contrast() {
            return self.part();
        }
        if self.paths.is_some() {
            return self.try_paths();
        }
        let open = self.evidence.open();
        let is_suspect = |node: &Node| self.evidence.belief(*node) > SUSPECT;
        let groups_max = self.settings.groups_max;
        if self.reopened && !open.iter().any(is_suspect) {
            if let Some(groups) = self.between_leaves()? {
                return Ok(groups);
            }
            self.reopened = false;
            return Ok(parts::by_belief(
                &self.evidence,
                groups_max,
                &mut self.random,
            ));
        }
        if !open.is_empty() {
            let (evidence, random) = (&mut self.evidence, &mut self.random);
            return Ok(suspects::confirm(evidence, open, groups_max, random));
        }
        self.close()
    }

    /// Parts everybody by chance, until some part passes.
    fn part(&mut self) -> Result<Vec<Group>, Conclusion> {
        if self.partings >= PARTINGS_MAX {
            return Err(Conclusion::AllAlike);
        }
        self.partings += 1;
        let groups_max = self.settings.groups_max;
        let groups = parts::by_chance(&self.evidence, groups_max, &mut self.random);
        if groups.is_empty() {
            return Err(Conclusion::NotKnown);
        }
        Ok(groups)
    }

    /// Everybody but the accused is good under the own leaf, and yet they are not good together: the groups that tell
    /// whether it is the way between the leaves. `None` when it is not.
    fn between_leaves(&mut self) -> Result<Option<Vec<Group>>, Conclusion> {
        let Some(leaf) = self.layout.leaves.as_ref().filter(|_| !self.leaves_told) else {
            return Ok(None);
        };
        if self.leaves.is_none() {
            let good = self.evidence.good().into_iter();
            let good = good.map(|node| (leaf[node], node));
            self.leaves = Leaves::among(good, &self.settings, &mut self.random);
        }
        let groups = self.leaves.as_mut().map_or_else(Vec::new, Leaves::wave);
        if !groups.is_empty() {
            return Ok(Some(groups));
        }
        self.leaves_told = true;
        let found = self.leaves.as_ref().map(Leaves::found);
        match found {
            Some((leaves, paths)) if !leaves.is_empty() || !paths.is_empty() => {
                Err(Conclusion::Leaves)
            }
            _ => Ok(None),
        }
    }

    /// Nothing is open: the closing test, if it has not passed yet.
    fn close(&mut self) -> Result<Vec<Group>, Conclusion> {
        let rest = self.evidence.not_accused();
        if rest.len() < 2 || self.evidence.is_closed(&rest) {
            return Err(self.evidence.conclusion());
        }
        let failed = self.evidence.closings_failed();
        if failed >= CLOSINGS_MAX && rest.len() <= ALL_PAIRS_MAX {
            self.paths = Some(Paths::between(&rest));
            return self.try_paths();
        }
        if failed >= CLOSINGS_MAX_LARGE {
            return Err(Conclusion::NotLocated);
        }
        Ok(vec![Group::new(rest, Purpose::Closing)])
    }

    fn try_paths(&mut self) -> Result<Vec<Group>, Conclusion> {
        let groups_max = self.settings.groups_max;
        let paths = self.paths.as_mut();
        let groups = paths.map_or_else(Vec::new, |paths| paths.wave(groups_max));
        if groups.is_empty() {
            return Err(Conclusion::NotLocated);
        }
        Ok(groups)
    }

    fn slow_paths(&self) -> impl Iterator<Item = (Node, Node)> {
        self.paths.iter().flat_map(Paths::slow)
    }

    /// A path that is slow remains so, however the search ended. Where hardly any group was good, the few that were may well
    /// have been by chance.
    fn or_what_is_found(&self, conclusion: Conclusion) -> Conclusion {
        match conclusion {
            Conclusion::NotLocated | Conclusion::NotKnown if self.slow_paths().next().is_some() => {
                Conclusion::Paths
            }
            Conclusion::NotLocated | Conclusion::NotKnown if self.evidence.is_alike() => {
                Conclusion::AllAlike
            }
            other => other,
        }
    }

    /// Looks at what was found more closely: at all nodes by rail where no part of them is good, at the accused and the
    /// paths otherwise.
    fn look_closer(&mut self, conclusion: Conclusion) -> Vec<Group> {
        match conclusion {
            _ if self.is_abstract => Vec::new(),
            Conclusion::AllAlike => {
                if self.survey.is_none() {
                    let (active, groups_max) = (self.evidence.active(), self.settings.groups_max);
                    self.survey = Survey::of(active, self.layout.rails, groups_max);
                }
                let survey = self.survey.as_mut();
                survey.map_or_else(Vec::new, |survey| survey.wave(&mut self.random))
            }
            Conclusion::Nodes | Conclusion::Paths | Conclusion::Leaves => {
                if self.closer.is_none() {
                    self.closer = Some(self.closer());
                }
                let closer = self.closer.as_mut();
                closer.map_or_else(Vec::new, |closer| closer.wave(&mut self.random))
            }
            Conclusion::AllGood
            | Conclusion::Rails
            | Conclusion::NotLocated
            | Conclusion::NotKnown => Vec::new(),
        }
    }

    fn closer(&self) -> Closer {
        let accused = self.evidence.proven();
        let accused = accused.map(|node| (node, self.evidence.nodes[node].is_wrong()));
        let known = closer::Known {
            accused: accused.collect(),
            paths: self.slow_paths().collect(),
            good: self.evidence.good(),
            leaves: self.layout.leaves.clone(),
            rails: self.layout.rails,
        };
        Closer::at(known, self.settings.rates, self.settings.groups_max)
    }

    /// What is known now.
    pub fn finding(&self) -> Finding {
        let conclusion = self.done.unwrap_or_else(|| self.evidence.conclusion());
        let rails = self.survey.as_ref().map_or_else(Vec::new, Survey::found);
        let conclusion = match conclusion {
            Conclusion::AllAlike if !rails.is_empty() => Conclusion::Rails,
            other => other,
        };
        let nodes = self.evidence.all();
        let mut nodes: Vec<NodeFinding> = nodes
            .map(|node| self.node_finding(node, conclusion))
            .collect();
        for (node, cause) in self.closer.iter().flat_map(Closer::causes) {
            nodes[node].cause = cause;
        }
        let found = self.leaves.as_ref().filter(|_| self.leaves_told);
        let (leaves, leaf_paths) = found.map(Leaves::found).unwrap_or_default();
        Finding {
            nodes,
            paths: match &self.closer {
                Some(closer) => closer.paths().collect(),
                None => self.slow_paths().map(PathFinding::not_repeated).collect(),
            },
            rails,
            leaves,
            leaf_paths,
            conclusion,
        }
    }

    fn node_finding(&self, node: Node, conclusion: Conclusion) -> NodeFinding {
        let evidence = &self.evidence;
        let known = &evidence.nodes[node];
        let probability = evidence.belief(node);
        let verdict = if known.is_absent() {
            Verdict::Unresponsive
        } else if matches!(conclusion, Conclusion::AllAlike | Conclusion::Rails)
            || conclusion == Conclusion::NotKnown && !evidence.is_proven(node)
        {
            Verdict::Undecided
        } else if evidence.is_proven(node) {
            known.accusation()
        } else if known.is_unsteady() {
            Verdict::Hanging
        } else if known.is_to_be_tried() || known.gone.is_some() {
            Verdict::Undecided
        } else if probability > 0.5 || known.named > 1 {
            Verdict::Suspect
        } else if known.named > 0 {
            Verdict::Interrupted
        } else if (probability <= OPEN && known.passed >= 1)
            // What failed with it failed for the way between the leaves.
            || (conclusion == Conclusion::Leaves && evidence.is_good(node))
        {
            Verdict::Healthy
        } else {
            Verdict::Undecided
        };
        NodeFinding {
            verdict,
            probability,
            groups: known.passed + known.failed + known.named,
            failed: known.failed + known.named,
            cause: Cause::default(),
        }
    }
}
