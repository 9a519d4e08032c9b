"""The steps a pipeline is made of, one file per mechanism."""

from camtools.steps.absolute_negative import AbsoluteNegative
from camtools.steps.adaptive_threshold import AdaptiveThreshold
from camtools.steps.affinity import Affinity
from camtools.steps.base import Stage, State, Step
from camtools.steps.cam import CAM
from camtools.steps.centre import Centre
from camtools.steps.cream import CREAM, UnitFeatures
from camtools.steps.crf import CRF
from camtools.steps.ddt import DDT
from camtools.steps.decode import Decode
from camtools.steps.edge_level import EdgeLevel
from camtools.steps.enlarge import Enlarge
from camtools.steps.fixed_threshold import FixedThreshold
from camtools.steps.gradient import Gradient
from camtools.steps.head_maps import HeadMaps
from camtools.steps.ivr import IVR
from camtools.steps.max_norm import MaxNorm
from camtools.steps.minmax import MinMax
from camtools.steps.nwc import NWC
from camtools.steps.pas import PaS
from camtools.steps.peaks import Peaks
from camtools.steps.range_threshold import RangeThreshold
from camtools.steps.sigmoid import ScoreThreshold, Sigmoid
from camtools.steps.wildcat_maps import WildcatMaps

__all__ = [
    "CAM",
    "CREAM",
    "CRF",
    "DDT",
    "IVR",
    "NWC",
    "AbsoluteNegative",
    "AdaptiveThreshold",
    "Affinity",
    "Centre",
    "Decode",
    "EdgeLevel",
    "Enlarge",
    "FixedThreshold",
    "Gradient",
    "HeadMaps",
    "MaxNorm",
    "MinMax",
    "PaS",
    "Peaks",
    "RangeThreshold",
    "ScoreThreshold",
    "Sigmoid",
    "Stage",
    "State",
    "Step",
    "UnitFeatures",
    "WildcatMaps",
]
