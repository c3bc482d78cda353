-- 12. Fluids given before the ICU: every stay, from MetaVision, else from CareVue.
WITH listed AS (
    SELECT itemid FROM items WHERE extract = 'preadm_fluid' AND itemid IN (SELECT itemid FROM d_items)
),
mv AS (
    SELECT icustay_id, sum(amount) AS total FROM inputevents_mv WHERE itemid IN (FROM listed) GROUP BY icustay_id
),
cv AS (
    SELECT icustay_id, sum(amount) AS total FROM inputevents_cv WHERE itemid IN (FROM listed) GROUP BY icustay_id
)
SELECT s.icustay_id, coalesce(mv.total, cv.total) AS inputpreadm
FROM icustays AS s
LEFT JOIN mv ON mv.icustay_id = s.icustay_id
LEFT JOIN cv ON cv.icustay_id = s.icustay_id
ORDER BY s.icustay_id
