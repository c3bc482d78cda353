-- 1. Cultures noted at the bedside, whatever their value.
SELECT subject_id, hadm_id, icustay_id, charttime, itemid
FROM charted
WHERE itemid IN (SELECT itemid FROM items WHERE extract = 'culture')
ORDER BY subject_id, hadm_id, charttime, itemid, icustay_id NULLS LAST
