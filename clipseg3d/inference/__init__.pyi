from .batch_prediction import CaseResult as CaseResult
from .batch_prediction import segment_cases as segment_cases
from .postprocessing import PostProcessing as PostProcessing
from .postprocessing_tuning import tune_postprocessing as tune_postprocessing
from .predictor import Predictor as Predictor
from .prompt_answer import PromptAnswer as PromptAnswer
from .segmentation import Segmentation as Segmentation
from .sliding_window import segment_volume as segment_volume
